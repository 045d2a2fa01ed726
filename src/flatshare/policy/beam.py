"""Beam search, one step at a time: from the beams and the log-probabilities of what may follow to the next beams.

As transformers searches, so that results can be compared: twice as many candidates as beams are looked at, only the first `width` of
them may end a text, and the search is over when no running beam can become better than the worst text that has ended.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that may be continued: `parent` is its place among the beams of the step before."""

    parent: int
    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A text that has ended, its score divided by its length to the power of the length penalty."""

    tokens: tuple[int, ...]
    score: float
    logprob: float
    is_cut: bool
    """It was ended by its length, not by the model."""


@dataclass(frozen=True, slots=True)
class Search:
    """The state between two steps. `running` is empty when the search is over."""

    running: tuple[Beam, ...]
    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True)
class BeamRules:
    width: int
    length_penalty: float
    max_tokens: int
    ends: frozenset[int]


BEGINNING = Search((Beam(0, (), 0.0),))


def advance(search: Search, following: NDArray[np.float32], rules: BeamRules) -> Search:
    """`following` [running, vocabulary] holds the log-probabilities of each running beam's next token."""
    length = len(search.running[0].tokens) + 1
    is_last = length >= rules.max_tokens
    running: list[Beam] = []
    ended = list(search.ended)
    for rank, beam in enumerate(_likeliest(search, following, 2 * rules.width)):
        is_end = beam.tokens[-1] in rules.ends
        if is_end or is_last:
            if rank < rules.width:
                ended.append(Ended(beam.tokens, beam.score / length**rules.length_penalty, beam.score, is_cut=not is_end))
        elif len(running) < rules.width:
            running.append(beam)
    best = tuple(sorted(ended, key=lambda text: -text.score)[: rules.width])
    if not running or _is_over(best, running[0].score / length**rules.length_penalty, rules.width):
        return Search((), best)
    return Search(tuple(running), best)


def _likeliest(search: Search, following: NDArray[np.float32], count: int) -> list[Beam]:
    """Continuations of all beams, likeliest first."""
    scores = following + np.array([[beam.score] for beam in search.running], np.float32)
    flat = scores.reshape(-1)
    count = min(count, len(flat))
    part = np.sort(np.argpartition(-flat, count - 1)[:count])
    order = part[np.argsort(-flat[part], kind="stable")]
    found = []
    for place in order.tolist():
        parent, token = divmod(place, following.shape[1])
        if np.isfinite(flat[place]):
            found.append(Beam(parent, (*search.running[parent].tokens, token), float(flat[place])))
    return found


def _is_over(ended: tuple[Ended, ...], attainable: float, width: int) -> bool:
    return len(ended) >= width and ended[-1].score >= attainable
