"""Weights that a model maps instead of reading: `pb_utils.map_safetensors`.

A tensor that an earlier package on this machine brought as well is mapped from that package's file, so that fine-tunes which froze a layer
hold its pages once. The importer has found those (package/triton/sharing.py) and kept the file beside the model under a hard link.
"""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True)
class TensorPlace:
    """Where the bytes of a tensor lie that another file of this machine has too."""

    path: str
    offset: int


@dataclass(frozen=True)
class SharedTensors:
    """For one model: the tensors of its files that lie elsewhere, by file and name."""

    places: Mapping[str, Mapping[str, TensorPlace]]

    def map_safetensors(self, path: str) -> dict[str, NDArray[Any]]:
        """Read-only views of a file's tensors, nothing read and nothing copied; bfloat16 as its bits in uint16.

        torch takes them by `torch.from_numpy` (and must not write into them), ONNX Runtime by `OrtValue.ortvalue_from_numpy`.
        """
        elsewhere = self.places.get(os.path.realpath(path), {})
        maps = _Maps()
        own = maps.open(path)
        header, start = _header(own, path)
        found = {}
        for name, entry in header.items():
            dtype, (begin, end) = np.dtype(_TYPES[entry["dtype"]]), entry["data_offsets"]
            place = elsewhere.get(name)
            source, offset = (maps.open(place.path), place.offset) if place is not None else (own, start + begin)
            count = (end - begin) // dtype.itemsize
            found[name] = np.frombuffer(source, dtype, count, offset).reshape(entry["shape"]) if count else np.empty(entry["shape"], dtype)
        return found


class _Maps:
    """One map per file; each lives as long as a view into it."""

    def __init__(self) -> None:
        self._open: dict[str, mmap.mmap] = {}

    def open(self, path: str) -> mmap.mmap:
        if path not in self._open:
            with Path(path).open("rb") as file:
                self._open[path] = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        return self._open[path]


def _header(data: mmap.mmap, path: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"{path} is not a safetensors file")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, 8 + length
