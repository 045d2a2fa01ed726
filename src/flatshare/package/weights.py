"""Safetensors files, one of a checkpoint's kinds of weights: a header checked to the byte, and float32 views of one read-only map.

Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the data, which the
offsets must cover without holes or overlaps. A file that lies about any of it is refused before a tensor is looked at.
"""

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadInput, BadPackage
from flatshare.wire import json_body

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_RANK = 8
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
FLOATS = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One tensor of the file: `begin` and `end` are offsets from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """A safetensors file, mapped. Raises BadPackage if its header does not describe its content."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        size = path.stat().st_size
        if size < 8:
            raise BadPackage(f"{path.name} has {size} bytes: a safetensors file has at least 8; upload it again")
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise BadPackage(
                    f"{path.name} claims a header of {header_bytes} bytes in a file of {size}: it is truncated or not safetensors"
                )
            entries = _read_entries(path.name, file.read(header_bytes), size - 8 - header_bytes)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        base = 8 + header_bytes
        self.entries = {e.name: WeightEntry(e.name, e.dtype, e.shape, base + e.begin, base + e.end) for e in entries}

    def raw(self, entry: WeightEntry) -> memoryview:
        """The tensor's bytes, as they lie in the file."""
        return memoryview(self._map)[entry.begin : entry.end]

    def float32(self, entry: WeightEntry) -> NDArray[np.float32]:
        """The tensor as float32; narrower and wider floats are converted into memory of their own."""
        return as_float32(np.frombuffer(self._map, np.uint8, entry.end - entry.begin, entry.begin), entry, self._name)

    def stated(self, entry: WeightEntry) -> None:
        """Nobody says what the digests are."""


def as_float32(raw: NDArray[np.uint8], entry: WeightEntry, file_name: str) -> NDArray[np.float32]:
    """A tensor's bytes as float32. Raises BadPackage for what is no float."""
    if entry.dtype == "F32":
        values = raw.view("<f4")
    elif entry.dtype == "BF16":  # the upper half of a float32
        values = (raw.view("<u2").astype("<u4") << 16).view("<f4")
    elif entry.dtype in FLOATS:
        values = narrowed(entry, raw.view({"F16": "<f2", "F64": "<f8"}[entry.dtype]), file_name)
    else:
        raise BadPackage(f"tensor '{entry.name}' in {file_name} is of type {entry.dtype}: weights must be F32, F16, BF16 or F64")
    return values.reshape(entry.shape)


def item_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """What a tensor takes. Raises BadPackage for a type that safetensors does not have."""
    if dtype not in _ITEM_BYTES:
        raise BadPackage(f"{dtype[:16]!r} is no type of tensors")
    return prod(shape) * _ITEM_BYTES[dtype]


def narrowed(entry: WeightEntry, values: NDArray[np.floating[Any]], file_name: str) -> NDArray[np.float32]:
    """As float32. Raises BadPackage for values that it cannot hold."""
    try:
        with np.errstate(over="raise"):
            return values.astype("<f4", copy=False)
    except FloatingPointError as error:
        raise BadPackage(f"tensor '{entry.name}' in {file_name} has values that float32 cannot hold: save it as F32") from error


def _read_entries(file_name: str, header: bytes, data_bytes: int) -> list[WeightEntry]:
    try:
        fields = json_body.parsed(header, f"the header of {file_name}")
    except BadInput as error:
        raise BadPackage(f"{error}: the file is damaged, upload it again") from error
    if not isinstance(fields, dict):
        raise BadPackage(f"the header of {file_name} is not an object: the file is damaged, upload it again")
    entries = [_entry(file_name, name, value) for name, value in fields.items() if name != "__metadata__"]
    _check_coverage(file_name, entries, data_bytes)
    return entries


def _entry(file_name: str, name: str, value: Any) -> WeightEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise BadPackage(f"tensor '{name}' in {file_name} lacks dtype, shape or data_offsets: the file is damaged") from error
    numbers = (*shape, begin, end)
    if (
        not isinstance(dtype, str)
        or dtype not in _ITEM_BYTES
        or len(shape) > _MAX_RANK
        or not all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    ):
        raise BadPackage(
            f"tensor '{name}' in {file_name} has an unusable dtype, shape or offset ({dtype}, {list(shape)[:9]}, {begin}, {end})"
        )
    expected = prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != expected:
        raise BadPackage(
            f"tensor '{name}' in {file_name} lies about its size: {list(shape)} of {dtype} takes {expected} bytes, "
            f"its offsets span {end - begin}"
        )
    return WeightEntry(name, dtype, shape, begin, end)


def _check_coverage(file_name: str, entries: list[WeightEntry], data_bytes: int) -> None:
    """The tensors must tile the data: …[begin, end)[begin, end)… from 0 to its last byte."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            what = "overlaps its neighbour" if entry.begin < position else "leaves a hole before it"
            raise BadPackage(
                f"tensor '{entry.name}' in {file_name} {what} (starts at {entry.begin}, expected {position}): the file is damaged"
            )
        position = entry.end
    if position != data_bytes:
        state = "truncated" if position > data_bytes else "longer than its tensors"
        raise BadPackage(f"{file_name} is {state}: its tensors end at byte {position} of {data_bytes}; upload it again")
