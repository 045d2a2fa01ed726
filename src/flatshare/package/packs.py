"""Packs: tensors one after the other as a machine's store has them, not compressed, each found by its digest.

    weights.pack     the bytes; a large tensor begins at a page
    weights.json     digest, type, shape and offset of each

A trunk is a pack that many models refer to. It lies once beside all of them, in a folder named by what it holds.
"""

import mmap
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, BinaryIO

import msgspec
import orjson
from msgspec import Meta

from flatshare.core.errors import BadPackage
from flatshare.package.weights import WeightEntry, WeightsFile, item_bytes
from flatshare.store.archive import disk_errors
from flatshare.store.tensors import PAGE, SMALL_ALIGNMENT

TRUNKS = ".flatshare/trunks/"
"""Where trunks lie beside packages, and below an endpoint's prefix; what begins with a dot is no model."""
PACK, INDEX = "weights.pack", "weights.json"
_MAX_INDEX_BYTES = 64 * 2**20

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
TrunkId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
Size = Annotated[int, Meta(ge=0, lt=2**62)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=8)]


class PackedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor and its place in the pack."""

    digest: Sha256
    dtype: str
    shape: Shape
    offset: Size

    @property
    def size_bytes(self) -> int:
        return item_bytes(self.dtype, self.shape)


class PackIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flatshare_pack: int
    tensors: tuple[PackedTensor, ...]

    @property
    def id(self) -> str:
        """What the pack holds, and in which order."""
        return sha256("".join(tensor.digest for tensor in self.tensors).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Trunk:
    """A trunk that packages may refer to."""

    id: str
    digests: frozenset[str]
    size_bytes: int


class Pack:
    """A folder with a pack, mapped. Raises BadPackage if index and bytes do not belong together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.index = read_index(folder)
        try:
            with (folder / PACK).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise BadPackage(f"'{folder / PACK}' is missing or empty: send the trunk again") from error
        if any(tensor.offset + tensor.size_bytes > len(self._map) for tensor in self.index.tensors):
            raise BadPackage(f"'{folder / PACK}' is shorter than its index says: send the trunk again")
        self._by_digest = {tensor.digest: tensor for tensor in self.index.tensors}

    def raw(self, digest: str) -> memoryview | None:
        """The tensor's bytes; None if it is not here."""
        tensor = self._by_digest.get(digest)
        return None if tensor is None else memoryview(self._map)[tensor.offset : tensor.offset + tensor.size_bytes]

    def verify(self, name: str) -> None:
        """Raises BadPackage unless every tensor has its digest and all of them make the pack that the name says."""
        for tensor in self.index.tensors:
            raw = self.raw(tensor.digest)
            assert raw is not None, "the index lacks what it lists. This is a bug."
            if digest_of(tensor.dtype, tensor.shape, raw) != tensor.digest:
                raise BadPackage(f"'{self._folder / PACK}' was altered: it holds a tensor that is not what its digest says")
        if self.index.id != name:
            raise BadPackage(f"'{self._folder}' is not the trunk that its name says: send it again")


class PackWriter:
    """Puts tensors behind each other, each distinct one once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, PackedTensor] = {}

    @property
    def index(self) -> PackIndex:
        return PackIndex(1, tuple(self._places.values()))

    def add(self, digest: str, entry: WeightEntry, raw: memoryview) -> int:
        """The tensor's offset."""
        if digest not in self._places:
            alignment = PAGE if len(raw) >= PAGE else SMALL_ALIGNMENT
            self._file.write(bytes(-self._file.tell() % alignment))
            self._places[digest] = PackedTensor(digest, entry.dtype, entry.shape, self._file.tell())
            self._file.write(raw)
        return self._places[digest].offset


def digest_of(dtype: str, shape: tuple[int, ...], raw: memoryview) -> str:
    """sha256 over type, shape and bytes: for float32 the digest that the tensor has in every store."""
    hasher = sha256(f"{dtype}{orjson.dumps(shape).decode()}".encode())
    hasher.update(raw)
    return hasher.hexdigest()


def write_trunk(files: Iterable[Path], folder: Path) -> Trunk:
    """Every tensor of these safetensors files as one pack below `folder`, unless it lies there already. Raises BadPackage, DiskFull."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(mkdtemp(prefix=".writing-", dir=folder))
        try:
            index, size_bytes = _write(files, fresh)
            with suppress(OSError):  # it is there: by its name it holds the same
                fresh.rename(folder / index.id)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Trunk(index.id, frozenset(tensor.digest for tensor in index.tensors), size_bytes)


def _write(files: Iterable[Path], folder: Path) -> tuple[PackIndex, int]:
    with (folder / PACK).open("wb") as out:
        writer = PackWriter(out)
        for file in map(WeightsFile, sorted(files)):
            for entry in file.entries.values():
                raw = file.raw(entry)
                writer.add(digest_of(entry.dtype, entry.shape, raw), entry, raw)
        size_bytes = out.tell()
    if not writer.index.tensors:
        raise BadPackage("the trunk has no tensors: name a checkpoint folder with safetensors files")
    (folder / INDEX).write_bytes(msgspec.json.encode(writer.index))
    folder.chmod(0o755)
    return writer.index, size_bytes


def read_index(folder: Path) -> PackIndex:
    """Raises BadPackage."""
    path = folder / INDEX
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise BadPackage(f"'{path}' has more than {_MAX_INDEX_BYTES} bytes: it is no index of a pack")
        return msgspec.json.decode(path.read_bytes(), type=PackIndex)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadPackage(f"'{path}' is no index of a pack: {error}") from error
