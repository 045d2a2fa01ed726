"""Weights that other packages on this machine have as well: found by hash at import, mapped once at run time."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.errors import BadPackage
from flatshare.core.ids import Digest
from flatshare.core.repository import SharedTensor
from flatshare.package.weights import WeightsFile
from flatshare.store.catalog import Catalog
from flatshare.store.packages import StoredFile

SHARED = ".shared"
"""Folder in a model's own, with the files that its tensors are found in."""
_WORTH_BYTES = 64 * 1024  # a map costs the process about as much as a few pages


@dataclass(slots=True)
class Sharing:
    """What one model's files of weights have in common with earlier ones."""

    taken: set[Digest]
    """Tensors that this package brings: of all its models."""
    places: dict[str, dict[str, SharedTensor]] = field(default_factory=dict)
    """By file, relative to the model's folder."""
    held: set[Digest] = field(default_factory=set)
    """Files of other packages that have to stay while this model is here."""
    new: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Tensors that later packages may find here: digest, file, offset and size in bytes."""

    def add(self, path: Path, stored: StoredFile, relative: str, catalog: Catalog) -> None:
        """Look at one file of weights. A file that is none is left to the model to complain about."""
        found = self.places.setdefault(relative, {})
        for name, digest, offset, size in _tensors(path):
            place = catalog.file_with_tensor(digest)
            if place is not None and place[0] != stored.digest:
                self.held.add(place[0])
                found[name] = SharedTensor(f"{SHARED}/{place[0]}.safetensors", place[1])
            elif place is None and digest not in self.taken:
                self.new.append((digest, stored.digest, offset, size))
                self.taken.add(digest)

    def shared(self) -> Mapping[str, Mapping[str, SharedTensor]]:
        return {file: found for file, found in self.places.items() if found}


def _tensors(path: Path) -> Iterator[tuple[str, Digest, int, int]]:
    """Name, digest over type, shape and bytes, offset in the file, and size of each tensor that is worth it."""
    try:
        weights = WeightsFile(path)
    except BadPackage:
        return
    for entry in weights.entries.values():
        size = entry.end - entry.begin
        if size >= _WORTH_BYTES:
            hasher = hashlib.sha256(f"{entry.dtype}{list(entry.shape)}".encode())
            hasher.update(weights.raw(entry))
            yield entry.name, Digest(hasher.hexdigest()), entry.begin, size
