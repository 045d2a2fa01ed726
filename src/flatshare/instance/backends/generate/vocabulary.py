"""A tokenizer from the writing side: what each token adds to a text, in bytes, and which tokens go on with a word half typed.

Shared by all models with the same tokenizer.json.
"""

import codecs
import re
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

_WORD_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """See the module. `spaces_first` says that a text's first word is written with a space before it, which does not belong to it."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        self._added = {token: b"" if added.special else added.content.encode() for token, added in _added_tokens(self.tokenizer).items()}
        self._is_byte_level = is_byte_level(orjson.loads(path.read_bytes()))
        self.spaces_first = not self._is_byte_level
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, with_special: bool) -> list[int]:
        """Always through `encode_batch_fast`: it alone lets other threads run meanwhile."""
        ids: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=with_special)[0].ids
        return ids

    def piece(self, token: int) -> bytes:
        """What the token adds to a text; nothing for special tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def continuing(self, typed: bytes) -> NDArray[np.int64]:
        """Tokens that begin with `typed`, and those that `typed` begins with: all that can come first if it must come out."""
        pieces, tokens = self._by_piece
        begin, end = bisect_left(pieces, typed), bisect_left(pieces, _successor(typed))
        found = list(tokens[begin:end])
        for length in range(1, len(typed)):
            place = bisect_left(pieces, typed[:length])
            while place < len(pieces) and pieces[place] == typed[:length]:
                found.append(tokens[place])
                place += 1
        return np.array(sorted(found), np.int64)

    @cached_property
    def _by_piece(self) -> tuple[list[bytes], list[int]]:
        """All that are not special, in the order of their bytes: made when somebody first sends half a word."""
        pairs = sorted((self._piece(token), token) for token in self.tokenizer.get_vocab(with_added_tokens=True).values())
        pairs = [pair for pair in pairs if pair[0]]
        return [piece for piece, _ in pairs], [token for _, token in pairs]

    def _piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        text = self.tokenizer.id_to_token(token)
        if text is None:  # the embeddings have more rows than the tokenizer has tokens
            return b""
        if self._is_byte_level:
            return bytes(_BYTES.get(character, 63) for character in text)
        as_byte = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(as_byte[1], 16)]) if as_byte else text.replace(_WORD_MARK, " ").encode()


class TextWriter:
    """Bytes of tokens → text that may be shown: whole characters, nothing of a stop string, nothing of what was typed already.

    written so far   ……………………|held back: half a character, or what may become a stop string|
    """

    def __init__(self, stop: tuple[str, ...], *, skip: int, strips_space: bool) -> None:
        self._stop = stop
        self._skip = skip
        self._strips_space = strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def add(self, piece: bytes) -> str:
        """The text that may be shown now."""
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        return self._show(self._decoder.decode(piece[skipped:]), is_last=False)

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.is_stopped else self._show(self._decoder.decode(b"", final=True), is_last=True)

    def _show(self, fresh: str, *, is_last: bool) -> str:
        if self._strips_space and fresh:
            fresh = fresh.removeprefix(" ")
            self._strips_space = False
        self._held += fresh
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
        else:
            kept = 0 if is_last else _could_begin(self._held, self._stop)
            end = len(self._held) - kept
            shown, self._held = self._held[:end], self._held[end:]
        self.text += shown
        return shown


def is_byte_level(fields: dict[str, object]) -> bool:
    """Whether tokens are spelled in GPT-2's alphabet of bytes, by the decoder in tokenizer.json; else words begin with a mark."""
    return '"ByteLevel"' in orjson.dumps(fields.get("decoder")).decode()


def split_typed(typed: str) -> tuple[str, str]:
    """Whole words, and the last word with the space before it: it may be unfinished."""
    place = len(typed.rstrip()) if typed != typed.rstrip() else max(typed.rfind(" "), typed.rfind("\n"))
    return (typed[:place], typed[place:]) if place > 0 else ("", typed)


def _could_begin(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    longest = max((len(stop) for stop in stops), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def _successor(prefix: bytes) -> bytes:
    """The least bytes that are greater than everything that begins with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\xff" * 64


def _added_tokens(tokenizer: Tokenizer) -> dict[int, Any]:
    added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
    return added


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes are themselves, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()
