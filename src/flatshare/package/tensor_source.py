"""A tensor on its way into a store, wherever it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.ids import TensorDigest
from flatshare.core.spec import TensorSpec
from flatshare.package.weight_files import FoundTensor
from flatshare.store.tensors import StoreWriter


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor somewhere in a file: its shape, and how to have it in float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]]
    """As float32, or as int8 if that is its dtype."""
    stated: TensorDigest | None = None
    """Its digest in a store, if that is known without reading it."""

    def float32(self) -> NDArray[np.float32]:
        return self.read()


def source_of(found: FoundTensor) -> Source:
    """A tensor of a checkpoint as it is."""
    return Source(found.entry.shape, found.entry.dtype, found.float32, found.stated)


def stored(writer: StoreWriter, name: str, source: Source) -> TensorSpec:
    """The tensor in the store. What an earlier import brought under the stated digest is not read again."""
    known = writer.known_tensor(name, source.stated, source.shape) if source.stated is not None else None
    return known or writer.add_tensor(name, source.read())
