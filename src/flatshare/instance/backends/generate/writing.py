"""One prompt's texts while they are written: scores of its rows in, the rows' next tokens out.

Samples are rows that do not know of each other; beams are rows that take each other's place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flatshare.core.errors import BadInput
from flatshare.core.generation import Completion, Decoding, Finish, Piece
from flatshare.instance.backends.generate.network import Logits, Prompt
from flatshare.instance.backends.generate.vocabulary import TextWriter, Vocabulary
from flatshare.policy import beam, decode

Emit = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt, ready to be written from."""

    index: int
    """Its place among the prompts of the call."""
    prompt: Prompt
    unfinished: bytes
    """Half a word that the text must go on with."""
    decoding: Decoding
    ends: frozenset[int]
    vocabulary: Vocabulary

    @property
    def seen(self) -> tuple[int, ...]:
        """What a repetition penalty counts from the start, as transformers does: what the writing side has before it."""
        return self.prompt.first or self.prompt.text

    def permit(self, scores: Logits, written: Sequence[int], unfinished: bytes) -> Logits:
        """Only what the caller's rules leave possible."""
        if self.decoding.repetition_penalty != 1.0:
            scores = decode.penalised(scores, np.unique(np.array((*self.seen, *written), np.int64)), self.decoding.repetition_penalty)
        if unfinished:
            permitted = self.vocabulary.continuing(unfinished)
            if not len(permitted):
                raise BadInput(f"no token of this model goes on with {unfinished.decode('utf-8', 'replace')!r}: leave it out of 'typed'")
            return decode.only(scores, permitted)
        if len(written) < self.decoding.min_tokens:
            return decode.without(scores, tuple(self.ends))
        return scores

    def writer(self) -> TextWriter:
        strips = self.vocabulary.spaces_first and not self.unfinished and len(self.prompt.first) <= 1
        return TextWriter(self.decoding.stop, skip=len(self.unfinished), strips_space=strips)


@dataclass(frozen=True, slots=True)
class Next:
    """A row of the next step: it goes on from the row `parent` with `token`."""

    parent: int
    token: int


class Writing(Protocol):
    """The texts of one task. Rows are numbered from 0 within it; the first scores are those after the prompt, of one row."""

    completed: list[Completion]

    def advance(self, logits: Logits) -> list[Next]:
        """From the rows' scores [rows, vocabulary] to the next rows; none if all texts have ended."""

    def cut(self, finish: Finish) -> None:
        """End what has not ended."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the only text, if it is only one: what a session needs."""


def writing_of(task: Task, emit: Emit) -> Writing:
    return Beams(task) if task.decoding.beams > 1 else Samples(task, emit)


@dataclass(slots=True)
class _Sample:
    choice: int
    writer: TextWriter
    dice: np.random.Generator
    unfinished: bytes
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class Samples:
    """`n` texts, each drawn by itself; greedy if the temperature is 0."""

    def __init__(self, task: Task, emit: Emit) -> None:
        self._task = task
        self._emit = emit
        decoding = task.decoding
        self._sampling = decode.Sampling(decoding.temperature, decoding.top_k, decoding.top_p)
        self._has_logprobs = decoding.has_details or decoding.n > 1
        self._live = [self._sample(choice) for choice in range(decoding.n)]
        self._first = self._live[0]
        self.completed: list[Completion] = []

    def advance(self, logits: Logits) -> list[Next]:
        rows, going_on = self._live, []
        following = []
        for place, sample in enumerate(rows):
            parent = place if len(logits) > 1 else 0
            finish = self._extend(sample, logits[parent])
            if finish is None:
                following.append(Next(parent, sample.tokens[-1]))
                going_on.append(sample)
            else:
                self._complete(sample, finish)
        self._live = going_on
        return following

    def cut(self, finish: Finish) -> None:
        for sample in self._live:
            self._complete(sample, finish)
        self._live = []

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._first.tokens)

    def _sample(self, choice: int) -> _Sample:
        seed = self._task.decoding.seed
        dice = np.random.default_rng(None if seed is None else (seed, self._task.index, choice))
        return _Sample(choice, self._task.writer(), dice, self._task.unfinished)

    def _extend(self, sample: _Sample, logits: Logits) -> Finish | None:
        """Draw the next token; why the text ends, or None if it goes on."""
        scores = self._task.permit(logits, sample.tokens, sample.unfinished)
        token = decode.choose(scores, self._sampling, sample.dice.random() if self._sampling.temperature else 0.0)
        sample.tokens.append(token)
        if self._has_logprobs:
            sample.logprob += float(decode.log_probabilities(logits)[token])
        if token in self._task.ends:
            return Finish.EOS
        piece = self._task.vocabulary.piece(token)
        sample.unfinished = rest_of(sample.unfinished, piece)
        self._show(sample, sample.writer.add(piece))
        if sample.writer.is_stopped:
            return Finish.STOP
        return Finish.LENGTH if len(sample.tokens) >= self._task.decoding.max_tokens else None

    def _complete(self, sample: _Sample, finish: Finish) -> None:
        self._show(sample, sample.writer.end())
        text, count = sample.writer.text, len(sample.tokens)
        self.completed.append(Completion(self._task.index, sample.choice, text, count, finish, sample.logprob))

    def _show(self, sample: _Sample, text: str) -> None:
        if text:
            self._emit(Piece(self._task.index, sample.choice, text))


class Beams:
    """The `n` best of a beam search. Nothing can be shown before it is over."""

    def __init__(self, task: Task) -> None:
        self._task = task
        decoding = task.decoding
        self._rules = beam.BeamRules(decoding.beams, decoding.length_penalty, decoding.max_tokens, task.ends)
        self._search = beam.BEGINNING
        self.completed: list[Completion] = []

    def advance(self, logits: Logits) -> list[Next]:
        running = self._search.running
        scores = decode.log_probabilities(logits[: len(running)])
        permitted = [self._task.permit(row, b.tokens, self._unfinished(b.tokens)) for row, b in zip(scores, running, strict=True)]
        self._search = beam.advance(self._search, np.stack(permitted), self._rules)
        if not self._search.running:
            self._complete([(text, Finish.LENGTH if text.is_cut else Finish.EOS) for text in self._search.ended])
        return [Next(b.parent, b.tokens[-1]) for b in self._search.running]

    def cut(self, finish: Finish) -> None:
        """The best of what has ended, and of what has not."""
        power = self._rules.length_penalty
        open_ = [
            (beam.Ended(b.tokens, b.score / len(b.tokens) ** power, b.score, is_cut=True), finish) for b in self._search.running if b.tokens
        ]
        done = [(text, Finish.EOS) for text in self._search.ended]
        self._search = beam.Search(())
        self._complete(sorted([*done, *open_], key=lambda pair: -pair[0].score))

    @property
    def tokens(self) -> tuple[int, ...]:
        return ()

    def _unfinished(self, tokens: Sequence[int]) -> bytes:
        left = self._task.unfinished
        for token in tokens:
            left = rest_of(left, self._task.vocabulary.piece(token))
        return left

    def _complete(self, texts: list[tuple[beam.Ended, Finish]]) -> None:
        for choice, (ended, finish) in enumerate(texts[: self._task.decoding.n]):
            writer = self._task.writer()
            for token in ended.tokens:
                if not writer.is_stopped:
                    writer.add(self._task.vocabulary.piece(token))
            writer.end()
            reason = Finish.STOP if writer.is_stopped else finish
            self.completed.append(Completion(self._task.index, choice, writer.text, len(ended.tokens), reason, ended.logprob))


def rest_of(unfinished: bytes, piece: bytes) -> bytes:
    """What of a half-typed word is still to come after `piece`."""
    return unfinished[len(piece) :] if piece and unfinished.startswith(piece) else b"" if piece else unfinished


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the rows of the next step lie, which rows must be copied before it (source, target), and which are free."""

    rows: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]
    freed: tuple[int, ...]


def place(following: Sequence[Next], rows: Sequence[int], spare: Iterator[int]) -> Placement:
    """The first child of a row stays where it is; others get the rows of those without children, then spare ones."""
    heirs: dict[int, int] = {}
    for index, item in enumerate(following):
        heirs.setdefault(item.parent, index)
    childless = [row for parent, row in enumerate(rows) if parent not in heirs]
    places, copies = [], []
    for index, item in enumerate(following):
        row = rows[item.parent]
        if heirs[item.parent] != index:
            target = childless.pop(0) if childless else next(spare)
            copies.append((row, target))
            row = target
        places.append(row)
    return Placement(tuple(places), tuple(copies), tuple(childless))
