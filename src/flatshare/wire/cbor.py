"""Ground floor: CBOR (RFC 8949), as much of it as AWS's rpc-v2-cbor protocol uses.

Written out here since general decoders also build what no caller of an AWS API has to send (decimals of any exponent, shared and
cyclic values, regular expressions), and reserve what a length claims before looking whether it is there.
"""

import struct
from dataclasses import dataclass
from typing import Any

from flatshare.core.errors import BadInput

_MAX_DEPTH = 64
_EPOCH_TAG = 1
_SIMPLE = {20: False, 21: True, 22: None, 23: None}
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_INDEFINITE = 31
_BREAK = 0xFF


@dataclass(frozen=True, slots=True)
class Epoch:
    """A moment, in seconds: CBOR's tag 1."""

    seconds: float


def loads(data: bytes) -> Any:
    """The one value in `data`; a tagged moment is its seconds. Raises BadInput."""
    reader = _Reader(data)
    try:
        value = reader.item(0)
    except (UnicodeDecodeError, TypeError) as error:  # TypeError: a key that is a list or a map
        raise BadInput(f"the body is not CBOR: {error}") from None
    if reader.left:
        raise BadInput("the body is not CBOR: something follows its value")
    return value


def dumps(value: Any) -> bytes:
    """Numbers, texts, bytes, booleans, nulls, lists, maps with texts as keys, and moments."""
    out = bytearray()
    _write(out, value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def item(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise BadInput(f"the body nests deeper than {_MAX_DEPTH} levels")
        kind, info = divmod(self._take(1)[0], 32)
        if kind in {2, 3}:
            data = self._string(kind, info)
            return data if kind == 2 else data.decode()
        if kind == 4:
            return [self.item(depth + 1) for _ in self._count(info)]
        if kind == 5:
            return {self.item(depth + 1): self.item(depth + 1) for _ in self._count(info)}
        if kind == 6:
            return self._tagged(self._number(info), depth)
        if kind == 7:
            return self._simple(info)
        number = self._number(info)
        return number if kind == 0 else -1 - number

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise BadInput("the body is not CBOR: it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise BadInput(f"the body is not CBOR: a length of kind {info}")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _string(self, kind: int, info: int) -> bytes:
        if info != _INDEFINITE:
            return self._take(self._number(info))
        parts = []
        for _ in self._count(info):
            part_kind, part_info = divmod(self._take(1)[0], 32)
            if part_kind != kind:
                raise BadInput("the body is not CBOR: a text or bytes in parts of another kind")
            parts.append(self._take(self._number(part_info)))
        return b"".join(parts)

    def _count(self, info: int) -> Any:
        """An iteration for each element. Lengths are claims: what is not there ends in `_take`."""
        if info != _INDEFINITE:
            yield from range(self._number(info))
            return
        while self._take(1)[0] != _BREAK:
            self._at -= 1
            yield

    def _tagged(self, tag: int, depth: int) -> float:
        value = self.item(depth + 1)
        if tag != _EPOCH_TAG or isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"the body has a CBOR tag {tag}, where only moments (tag 1, seconds) are understood")
        return value

    def _simple(self, info: int) -> Any:
        if info in _SIMPLE:
            return _SIMPLE[info]
        if info in _FLOATS:
            return struct.unpack(_FLOATS[info], self._take(struct.calcsize(_FLOATS[info])))[0]
        raise BadInput(f"the body is not CBOR: a simple value {info}")


def _write(out: bytearray, value: Any) -> None:
    if isinstance(value, list):
        _write_head(out, 4, len(value))
        for item in value:
            _write(out, item)
    elif isinstance(value, dict):
        _write_head(out, 5, len(value))
        for key, item in value.items():
            _write(out, key)
            _write(out, item)
    elif isinstance(value, Epoch):
        _write_head(out, 6, _EPOCH_TAG)
        _write(out, float(value.seconds))
    else:
        _write_scalar(out, value)


def _write_scalar(out: bytearray, value: Any) -> None:
    match value:
        case None:
            out.append(0xF6)
        case bool():
            out.append(0xF5 if value else 0xF4)
        case int():
            _write_head(out, 0 if value >= 0 else 1, value if value >= 0 else -1 - value)
        case float():
            out += b"\xfb" + struct.pack(">d", value)
        case bytes():
            _write_head(out, 2, len(value))
            out += value
        case str():
            data = value.encode()
            _write_head(out, 3, len(data))
            out += data
        case _:
            raise TypeError(f"{type(value).__name__} has no form in CBOR here. This is a bug.")


def _write_head(out: bytearray, kind: int, number: int) -> None:
    if number < 24:
        out.append(kind * 32 + number)
        return
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            out.append(kind * 32 + info)
            out += number.to_bytes(size, "big")
            return
    raise TypeError(f"{number} has more than 64 bits. This is a bug.")
