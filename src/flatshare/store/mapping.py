"""Packs in memory: each is mapped once per process, read-only, and unmapped when the last tensor view is gone.

Through libc, because Python's mmap keeps a file descriptor open per map (until 3.13), and 1,500 resident models are 1,500 maps.
An I/O error under a map is SIGBUS: what is mapped was hashed when it was written, and lies on a local disk.
"""

import ctypes
import mmap
import os
import threading
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FileId = tuple[int, int]  # device and inode
_MAP_FAILED = ctypes.c_void_p(-1).value


class PackMap:
    """One pack file in memory."""

    def __init__(self, region: "ctypes.Array[ctypes.c_char]") -> None:
        self._bytes: NDArray[np.uint8] = np.frombuffer(memoryview(region).toreadonly(), np.uint8)

    def tensor(self, offset: int, shape: tuple[int, ...], size_bytes: int) -> NDArray[np.float32]:
        """A float32 view: nothing is read until it is used, and the map lives as long as the view."""
        tensor: NDArray[np.float32] = self._bytes[offset : offset + size_bytes].view(np.float32).reshape(shape)
        return tensor

    def int8(self, offset: int, shape: tuple[int, ...], size_bytes: int) -> NDArray[np.int8]:
        """The same of int8."""
        tensor: NDArray[np.int8] = self._bytes[offset : offset + size_bytes].view(np.int8).reshape(shape)
        return tensor


class MapPool:
    """The packs that are mapped now, shared by all models of the process. Safe from several threads."""

    def __init__(self) -> None:
        self._regions: weakref.WeakValueDictionary[_FileId, ctypes.Array[ctypes.c_char]] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._regions)

    def get(self, path: Path) -> PackMap:
        """The pack, mapped now or before. Raises FileNotFoundError if it is gone.

        A file that took the place of a damaged one under the same name is another file, and gets a map of its own.
        """
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            with self._lock:
                region = self._regions.get((status.st_dev, status.st_ino))
                if region is None:
                    region = self._regions[status.st_dev, status.st_ino] = _map(file, status.st_size, path)
                return PackMap(region)
        finally:
            os.close(file)


def _map(file: int, size: int, path: Path) -> "ctypes.Array[ctypes.c_char]":
    """The file's bytes. Views keep the region alive; when the last is gone, it is unmapped."""
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {path}: {os.strerror(code)}")
    region = (ctypes.c_char * size).from_address(address)
    weakref.finalize(region, _libc.munmap, address, size).atexit = False  # at exit the kernel does it, when no thread reads any more
    return region
