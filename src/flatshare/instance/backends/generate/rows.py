"""Keys and values of the texts that are being written: one row per text, appended to in place by the engine.

Address space for every row up to the model's last position is taken at once, memory only for what is written: the kernel gives a page
when it is first touched, and takes it back when its row is released.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_ALIGNMENT = mmap.PAGESIZE
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.12 on


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row's content, copied out: what a session keeps between two calls."""

    tokens: tuple[int, ...]
    """Whose keys and values these are, in order."""
    tensors: Mapping[str, Array]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class CacheRows:
    """Tensors [rows, heads, capacity, head size], by name, in memory of their own."""

    def __init__(self, row_shapes: Mapping[str, tuple[int, ...]], rows: int) -> None:
        starts, size = {}, 0
        for name, shape in row_shapes.items():
            starts[name] = size
            size += -(-4 * rows * prod(shape) // _ALIGNMENT) * _ALIGNMENT
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self._starts = starts
        self.tensors: dict[str, Array] = {
            name: np.frombuffer(self._map, np.float32, rows * prod(shape), starts[name]).reshape(rows, *shape)
            for name, shape in row_shapes.items()
        }

    def write(self, row: int, name: str, values: Array) -> None:
        """`values` [heads, tokens, head size] are the row's first tokens."""
        self.tensors[name][row, :, : values.shape[1]] = values

    def copy(self, source: int, target: int, lengths: Mapping[str, int]) -> None:
        """Make one row the other's equal, as far as `lengths` says for each tensor."""
        for name, length in lengths.items():
            tensor = self.tensors[name]
            tensor[target, :, :length] = tensor[source, :, :length]

    def copied(self, row: int, lengths: Mapping[str, int]) -> dict[str, Array]:
        return {name: self.tensors[name][row, :, :length].copy() for name, length in lengths.items()}

    def release(self, row: int) -> None:
        """Give the row's memory back to the kernel; it reads as zeros from now on."""
        for name, tensor in self.tensors.items():
            size = tensor[row].nbytes
            begin = -(-(self._starts[name] + row * size) // _ALIGNMENT) * _ALIGNMENT
            end = (self._starts[name] + (row + 1) * size) // _ALIGNMENT * _ALIGNMENT
            if end > begin:
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
