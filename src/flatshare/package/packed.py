"""A safetensors file taken apart: `X.safetensors.packed` lists its tensors by digest, `X.safetensors.pack` has those that no trunk has.

Whoever imports it finds the trunks' addresses in `.trunks/` beside it; a trunk is fetched when a tensor of it has to be read.
"""

import mmap
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, TensorDigest
from flatshare.core.settings import StoreLimits
from flatshare.package.packs import Pack, PackWriter, Sha256, Shape, Size, Trunk, TrunkId, digest_of
from flatshare.package.weights import WeightEntry, WeightsFile, as_float32, item_bytes
from flatshare.store.sources import fetch, probe

LISTING, OWN = ".packed", ".pack"
ADDRESSES = ".trunks"
_MAX_LISTING_BYTES = 64 * 2**20


class ListedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor of the file: in a trunk, or at an offset of the file's own pack."""

    name: Annotated[str, Meta(max_length=1024)]
    dtype: str
    shape: Shape
    digest: Sha256
    trunk: TrunkId | None = None
    offset: Size = 0


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flatshare_packed: int
    tensors: tuple[ListedTensor, ...]

    @property
    def trunks(self) -> frozenset[str]:
        return frozenset(tensor.trunk for tensor in self.tensors if tensor.trunk is not None)


class TrunkAddress(msgspec.Struct, frozen=True):
    """Where a trunk can be fetched from, and to."""

    uri: str
    root: str
    into: str


def write_packed(source: Path, place: Path, trunk: Trunk | None) -> Listing:
    """Take `source` apart into files beside `place`. Raises BadPackage if it is no safetensors file."""
    file, listed, own = WeightsFile(source), [], place.with_name(place.name + OWN)
    with own.open("wb") as out:
        writer = PackWriter(out)
        for entry in file.entries.values():
            raw = file.raw(entry)
            digest = digest_of(entry.dtype, entry.shape, raw)
            is_shared = trunk is not None and digest in trunk.digests
            offset = 0 if is_shared else writer.add(digest, entry, raw)
            listed.append(ListedTensor(entry.name, entry.dtype, entry.shape, digest, trunk.id if trunk and is_shared else None, offset))
    if not writer.index.tensors:
        own.unlink()
    listing = Listing(1, tuple(listed))
    place.with_name(place.name + LISTING).write_bytes(msgspec.json.encode(listing) + b"\n")
    return listing


def read_listing(path: Path) -> Listing:
    """Raises BadPackage."""
    try:
        if path.stat().st_size > _MAX_LISTING_BYTES:
            raise BadPackage(f"{path.name} has more than {_MAX_LISTING_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=Listing)
    except msgspec.MsgspecError as error:
        raise BadPackage(f"{path.name} is damaged: {error}; make the package anew") from error


class PackedFile:
    """The tensors of a safetensors file that was taken apart."""

    def __init__(self, path: Path, limits: StoreLimits) -> None:
        self._path = path
        self._limits = limits
        listing = read_listing(path.with_name(path.name + LISTING))
        self._listed = {tensor.name: tensor for tensor in listing.tensors}
        self._own: mmap.mmap | None = None
        self._trunks: dict[str, Pack] = {}
        self.entries = {t.name: WeightEntry(t.name, t.dtype, t.shape, 0, item_bytes(t.dtype, t.shape)) for t in listing.tensors}

    def float32(self, entry: WeightEntry) -> NDArray[np.float32]:
        """The tensor as float32. Raises BadPackage for bytes that do not have their digest."""
        listed = self._listed[entry.name]
        raw = self._from_own_pack(listed) if listed.trunk is None else self._from_trunk(listed.trunk, listed)
        if len(raw) != entry.end or digest_of(entry.dtype, entry.shape, raw) != listed.digest:
            raise BadPackage(f"tensor '{entry.name}' of {self._path.name} is not what its digest says: make the package anew")
        return as_float32(np.frombuffer(raw, np.uint8), entry, self._path.name)

    def stated(self, entry: WeightEntry) -> TensorDigest | None:
        """Whoever brought the file says that a trunk has the tensor; the trunk was looked at. What lies in its own pack is read."""
        listed = self._listed[entry.name]
        return TensorDigest(listed.digest) if listed.trunk is not None and listed.dtype == "F32" else None

    def _from_own_pack(self, listed: ListedTensor) -> memoryview:
        if self._own is None:
            self._own = _mapped(self._path.with_name(self._path.name + OWN))
        return memoryview(self._own)[listed.offset : listed.offset + item_bytes(listed.dtype, listed.shape)]

    def _from_trunk(self, trunk: str, listed: ListedTensor) -> memoryview:
        if trunk not in self._trunks:
            self._trunks[trunk] = Pack(_fetched(self._path.parent / ADDRESSES / trunk, self._limits))
        raw = self._trunks[trunk].raw(listed.digest)
        if raw is None:
            raise BadPackage(f"trunk {trunk} has no tensor '{listed.name}': make the package anew")
        return raw


def _fetched(address: Path, limits: StoreLimits) -> Path:
    try:
        where = msgspec.json.decode(address.read_bytes(), type=TrunkAddress)
    except FileNotFoundError as error:
        raise BadPackage("weights in packs are served from an endpoint's prefix: deploy the package with 'flatshare deploy'") from error
    return fetch(probe(ArtifactUri(where.uri), root=where.root, limits=limits), Path(where.into), limits)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise BadPackage(f"{path.name} is missing or empty: send the package again") from error
