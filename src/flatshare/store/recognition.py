"""Tensors that are known already, recognised by comparing them with what lies in the store: a fifth of the time that hashing takes.

A sketch (a hash over a few samples of the bytes) finds the candidate; every byte is compared before it counts as the same.
"""

import ctypes
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatshare.core.ids import Digest, TensorDigest
from flatshare.store.catalog import Catalog
from flatshare.store.mapping import MapPool, PackMap

_LEAST_BYTES = 65_536  # hashing less takes as long as looking a sketch up
_SAMPLES, _SAMPLE_BYTES = 16, 64
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Recognizer:
    """Looks tensors up for one import. The caller holds the store's lock, so that nothing is moved meanwhile."""

    def __init__(self, catalog: Catalog, packs_dir: Path) -> None:
        self._catalog = catalog
        self._packs_dir = packs_dir
        self._maps = MapPool()
        self._packs: dict[str, PackMap] = {}

    def known(self, sketch: Digest, shape: tuple[int, ...], data: NDArray[np.uint8]) -> TensorDigest | None:
        """The digest of the stored tensor that has this shape and these bytes, if there is one and its pack can be read."""
        found = self._catalog.sketched(sketch)
        if found is None or found.size_bytes != data.nbytes:
            return None
        pack = self._pack(found.place.pack)
        if pack is None:
            return None
        stored = pack.tensor(found.place.offset, shape, found.size_bytes)
        return found.digest if _memcmp(stored.ctypes.data, data.ctypes.data, data.nbytes) == 0 else None

    def _pack(self, name: str) -> PackMap | None:
        """Mapped once for the whole import: most of a trunk's tensors lie in one pack."""
        if name not in self._packs:
            try:
                self._packs[name] = self._maps.get(self._packs_dir / f"{name}.pack")
            except OSError:
                return None
        return self._packs[name]


def sketch_of(shape_text: str, data: NDArray[np.uint8]) -> Digest | None:
    """For tensors that are worth it."""
    if data.nbytes < _LEAST_BYTES:
        return None
    hasher = hashlib.sha256(f"{shape_text} {data.nbytes}".encode())
    for sample in range(_SAMPLES):
        begin = sample * (data.nbytes - _SAMPLE_BYTES) // (_SAMPLES - 1)
        hasher.update(data[begin : begin + _SAMPLE_BYTES].data)
    return Digest(hasher.hexdigest()[:32])
