"""Texts → token ids, exactly as long as they are: a tokenizer that never pads, and says when it cuts.

The end of a text that is too long goes, or its beginning if the tokenizer says so.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

_UNSTABLE_TOKENS = 128  # at the end of a prefix, where a word may have been cut: WordPiece looks at 100 characters of a word


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One text, or pair of texts, as the engine takes it."""

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    """0 for the first text of a pair, 1 for the second."""
    is_cut: bool = False
    prompt_tokens: int = 0
    """So many at the beginning are the prompt's, and not pooled."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the text itself: where it lies in its row, and which characters it stands for."""

    position: int
    token: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class PiecedRow:
    """A row that remembers its text."""

    row: Row
    pieces: tuple[Piece, ...]


class TextEncoder:
    """Shared by every model with the same tokenizer.json, so it keeps no state of a call.

    Always through the batch calls: they alone let other threads run meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._keeps_end = (self._tokenizer.truncation or {}).get("direction") == "left"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special_ids = frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._special_of_pair = self._tokenizer.num_special_tokens_to_add(is_pair=True)

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[Row]:
        """Each text alone, cut to `max_tokens` with its special tokens."""
        return [self._encode_one(text, max_tokens) for text in texts]

    def encode_pairs(self, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int) -> list[Row]:
        """Each pair as one row. If it is too long, the longer text is cut, then both alike."""
        room = max_tokens - self._special_of_pair
        known: dict[str, _Tokens] = {}  # a query comes with each of its passages
        return [self._encode_pair(self._cached(known, a, room), self._tokens(b, room), room) for a, b in zip(firsts, seconds, strict=True)]

    def encode_pieces(self, texts: Sequence[str], max_tokens: int) -> list[PiecedRow]:
        """As `encode`, with the characters that each token stands for."""
        rows = []
        for text in texts:
            tokens = self._tokens(text, max_tokens - self._special, has_offsets=True)
            is_cut = tokens.exceed(max_tokens - self._special)
            encoding = self._tokenizer.post_process(tokens.cut(max_tokens - self._special))
            found = zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
            start = tokens.begin
            pieces = (Piece(i, token, start + begin, start + end) for i, (token, (begin, end), special) in enumerate(found) if not special)
            rows.append(PiecedRow(_row(encoding, is_cut=is_cut), tuple(pieces)))
        return rows

    def prompt_tokens(self, prompt: str, max_tokens: int) -> int:
        """How many tokens sentence-transformers takes for the prompt's: those of the prompt alone, but for a special one at its end."""
        ids = self._encode_one(prompt, max_tokens).ids
        return len(ids) - (bool(len(ids)) and int(ids[-1]) in self._special_ids)

    def token(self, token_id: int) -> str:
        """The piece that an id stands for."""
        return str(self._tokenizer.id_to_token(token_id) or "")

    def _encode_one(self, text: str, max_tokens: int) -> Row:
        room = max_tokens - self._special
        tokens = self._tokens(text, room)
        is_cut = tokens.exceed(room)
        return _row(self._tokenizer.post_process(tokens.cut(room)), is_cut=is_cut)

    def _encode_pair(self, first: "_Tokens", second: "_Tokens", room: int) -> Row:
        left, right = longest_first(first.count, second.count, room)
        encoding = self._tokenizer.post_process(first.copy(left), second.copy(right))
        return _row(encoding, is_cut=first.exceed(left) or second.exceed(right))

    def _cached(self, known: dict[str, "_Tokens"], text: str, room: int) -> "_Tokens":
        if text not in known:
            known[text] = self._tokens(text, room)
        return known[text]

    def _tokens(self, text: str, room: int, *, has_offsets: bool = False) -> "_Tokens":
        """The text's own tokens. An enormous text is read only as far as its first tokens reach."""
        encode = self._tokenizer.encode_batch if has_offsets else self._tokenizer.encode_batch_fast
        for characters in prefix_lengths(len(text), room):
            begin = len(text) - characters if self._keeps_end else 0
            encoding = encode([text[begin : begin + characters]], add_special_tokens=False)[0]
            if len(encoding) > room + _UNSTABLE_TOKENS or characters == len(text):
                break
        rest = text[:begin] if self._keeps_end else text[characters:]
        return _Tokens(encoding, bool(rest.strip()), begin, "left" if self._keeps_end else "right")


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """What the tokenizer made of a text, or of as much of it as can matter."""

    encoding: Encoding
    has_more: bool
    begin: int
    """The character of the text at which the encoding begins."""
    side: str
    """Which end is cut off."""

    @property
    def count(self) -> int:
        return len(self.encoding)

    def exceed(self, room: int) -> bool:
        return self.has_more or self.count > room

    def cut(self, room: int) -> Encoding:
        """For the last use of these tokens: it shortens them."""
        if self.count > room:
            self.encoding.truncate(room, direction=self.side)
        return self.encoding

    def copy(self, room: int) -> Encoding:
        """The first `room` tokens, leaving these as they are."""
        copied = Encoding.merge([self.encoding])
        if self.count > room:
            copied.truncate(room, direction=self.side)
        return copied


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair stay: the longer one is cut to the shorter, then both to a half (tokenizers' way)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (short, long) if first <= second else (long, short)


def prefix_lengths(characters: int, max_tokens: int) -> Iterator[int]:
    """How much of a text to tokenise, in growing steps: all of a usual one, 256 characters per token of an absurd one."""
    length = 32 * max_tokens
    while length < min(characters, 256 * max_tokens):
        yield length
        length *= 4
    yield min(characters, 256 * max_tokens)


def _row(encoding: Encoding, *, is_cut: bool) -> Row:
    return Row(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64), is_cut)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # parallelism is across requests, and its threads would outlive them
