"""The tensor store: every distinct tensor of all imported models once on this machine's disk.

    store/catalog.db        what lies where (catalog.py)
    store/packs/ID.pack     the tensors that one import brought new, large ones page-aligned
    store/blobs/DIGEST      graphs and tokenizers
    store/files, packages, environments     models that are served from their own files (packages.py)
    store/incoming/NAME/    an artifact on its way in, and what is taken apart for it
    store/link, demand      the way to the object store, shared by the machine's fetches (link.py)
    store/room.lock         held by who makes room on the disk (instance/disk.py)
    store/import.lock       held by the one import that writes; the kernel lets go of it when the importer dies

An import writes pack and blobs under temporary names, makes them durable, renames them, and only then commits rows.
Killed anywhere before the commit, it leaves files without rows, which `repair` removes.
"""

import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import DiskFull
from flatshare.core.ids import ArtifactUri, Digest, ModelDigest, TensorDigest, model_key
from flatshare.core.spec import Dtype, ModelManifest, StoredModel, TensorSpec
from flatshare.store.catalog import Catalog, DiskUsage, insert_model, insert_pack, layout_of
from flatshare.store.packages import PackageArea, removed
from flatshare.store.recognition import Recognizer, sketch_of

PAGE = 4096
SMALL_ALIGNMENT = 64  # a cache line; a page for each bias would waste a tenth of a small model
_OUT_OF_SPACE = {28, 122, 27}  # ENOSPC, EDQUOT, EFBIG


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What an interrupted import had left, and what had gone missing."""

    removed_files: tuple[str, ...]
    lost_packs: tuple[str, ...]
    dropped_models: tuple[ModelDigest, ...]


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection gave back."""

    models: int
    tensors: int
    freed_bytes: int


class TensorStore:
    """Safe from several threads and processes: writers take turns by a file lock, readers never wait."""

    def __init__(self, folder: Path) -> None:
        folder = folder.absolute()  # workers read packages from a working directory of their own
        self.folder = folder
        self.packs_dir = folder / "packs"
        self.blobs_dir = folder / "blobs"
        self.incoming_dir = folder / "incoming"
        for directory in (self.packs_dir, self.blobs_dir, self.incoming_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self.packages = PackageArea(folder)
        self.catalog = Catalog(folder / "catalog.db")

    def stored(self, digest: ModelDigest) -> StoredModel | None:
        """The model with the places of its tensors, or None if it is not (or no longer) here."""
        manifest = self.catalog.manifest(digest)
        if manifest is None:
            return None
        places = self.catalog.places(digest)
        if len(places) != len(manifest.distinct_tensors):  # it was collected between the two reads
            return None
        graph, tokenizer = str(self.blob_path(manifest.graph)), str(self.blob_path(manifest.tokenizer))
        package, measured = str(self.packages.package_path(digest)), self.catalog.measured_own_bytes(digest)
        return StoredModel(manifest, places, graph, tokenizer, str(self.packs_dir), package, measured)

    def blob_path(self, digest: Digest) -> Path:
        return self.blobs_dir / digest

    def pack_path(self, pack: str) -> Path:
        return self.packs_dir / f"{pack}.pack"

    def incoming_path(self, uri: ArtifactUri) -> Path:
        """For the artifact's files on their way in. Whoever has something there holds the lock beside it (instance/disk.py)."""
        return self.incoming_dir / model_key(uri)

    def usage(self) -> DiskUsage:
        return self.catalog.usage()

    @contextmanager
    def writing(self) -> Iterator["StoreWriter"]:
        """The one import that may write now. Nothing of it is visible before `commit`, nothing remains after a failure."""
        with self._lock():
            writer = StoreWriter(self)
            try:
                with self._disk_errors():
                    yield writer
            finally:
                writer.discard()

    def repair(self) -> RepairReport:
        """Bring disk and catalog together again: files without a row go, models without their files are imported anew when asked for."""
        with self._lock():
            removed = self._remove_strays()
            known = self.catalog.pack_sizes()
            lost = [pack for pack, size in known.items() if _size(self.pack_path(pack)) != size]
            lost_blobs = [digest for digest in self.catalog.blob_digests() if not self.blob_path(digest).exists()]
            dropped = self._drop_models_that_lost(lost, lost_blobs, self.packages.lost(self.catalog))
            self.catalog.forget_refusals()
        return RepairReport(tuple(path.name for path in removed), tuple(lost), tuple(dropped))

    def collect(self) -> CollectReport:
        """Delete models that no artifact names, tensors that no model uses, and the packs and blobs that are empty then.

        A pack that still holds something is written anew once more than half of it is dead; its old file stays readable for
        whoever has mapped it.
        """
        with self._lock(), self._disk_errors():
            before = self.catalog.disk_bytes()
            with self.catalog.transaction() as sql:
                models = sql.execute("DELETE FROM models WHERE digest NOT IN (SELECT model FROM artifacts)").rowcount
                tensors = sql.execute("DELETE FROM tensors WHERE digest NOT IN (SELECT tensor FROM model_tensors)").rowcount
                sql.execute("DELETE FROM packs WHERE id NOT IN (SELECT pack FROM tensors)")
                sql.execute("DELETE FROM footprints WHERE model NOT IN (SELECT digest FROM models)")
                sql.execute("DELETE FROM imports WHERE model NOT IN (SELECT digest FROM models)")
                sql.execute("DELETE FROM file_tensors WHERE file NOT IN (SELECT file FROM package_files)")
                used = "SELECT json_extract(manifest, '$.graph') FROM models UNION SELECT json_extract(manifest, '$.tokenizer') FROM models"
                sql.execute(f"DELETE FROM blobs WHERE digest NOT IN ({used})")  # noqa: S608  # no value of a caller in it
            self._remove_strays()  # first, so that there is room on a full disk for what is written anew
            for pack, size in self.catalog.pack_sizes().items():
                self._compact(pack, size)
            self._remove_strays()
            return CollectReport(models, tensors, before - self.catalog.disk_bytes())

    def verify(self) -> Iterator[tuple[str, bool]]:
        """Hash every tensor again: yields each pack with whether all of its tensors still have their digests."""
        for pack in self.catalog.pack_sizes():
            yield pack, self.is_sound(pack)

    def drop_pack(self, pack: str) -> list[ModelDigest]:
        """Forget a rotten pack and the models that lived in it; they are imported anew when asked for."""
        with self._lock():
            dropped = self._drop_models_that_lost([pack], [])
            removed(self.pack_path(pack))
            return dropped

    def is_sound(self, pack: str) -> bool:
        """Whether every tensor of the pack still has its digest. A pack that has left meanwhile is."""
        if pack not in self.catalog.pack_sizes():
            return True
        try:
            file = self.pack_path(pack).open("rb")
        except OSError:
            return False
        with file:
            for digest, place, size, shape in self.catalog.tensors_in(pack):
                file.seek(place.offset)
                if _hashed(shape, file.read(size)) != digest:
                    return False
        return True

    def _drop_models_that_lost(self, packs: list[str], blobs: list[Digest], folders: Iterable[ModelDigest] = ()) -> list[ModelDigest]:
        with self.catalog.transaction() as sql:
            lost: set[str] = set(folders)
            for pack in packs:
                lost.update(
                    r[0]
                    for r in sql.execute(
                        "SELECT model FROM model_tensors WHERE tensor IN (SELECT digest FROM tensors WHERE pack = ?)", (pack,)
                    )
                )
            for blob in blobs:
                lost.update(
                    r[0]
                    for r in sql.execute(
                        "SELECT digest FROM models WHERE ? IN (json_extract(manifest, '$.graph'), json_extract(manifest, '$.tokenizer'))",
                        (blob,),
                    )
                )
                sql.execute("DELETE FROM blobs WHERE digest = ?", (blob,))
            sql.executemany("DELETE FROM models WHERE digest = ?", [(model,) for model in lost])
            for pack in packs:
                sql.execute("DELETE FROM tensors WHERE pack = ?", (pack,))
                sql.execute("DELETE FROM packs WHERE id = ?", (pack,))
        return sorted(ModelDigest(model) for model in lost)

    def _compact(self, pack: str, size_bytes: int) -> None:
        tensors = self.catalog.tensors_in(pack)
        if sum(size for _, _, size, _ in tensors) * 2 >= size_bytes:
            return
        writer = StoreWriter(self)
        try:
            with self.pack_path(pack).open("rb") as file:
                for digest, place, size, _ in tensors:
                    file.seek(place.offset)
                    writer.append(TensorSpec("", digest, (), size), file.read(size))
            self._move(pack, *writer.finish_pack())
            writer.keep()
        finally:
            writer.discard()

    def _move(self, pack: str, fresh: str, fresh_bytes: int, moved: list[tuple[TensorSpec, int]]) -> None:
        with self.catalog.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO packs VALUES (?, ?)", (fresh, fresh_bytes))
            sql.executemany(
                "UPDATE tensors SET pack = ?, offset = ? WHERE digest = ?",
                [(fresh, offset, tensor.digest) for tensor, offset in moved],
            )
            sql.execute("DELETE FROM packs WHERE id = ?", (pack,))

    def _remove_strays(self) -> list[Path]:
        """Delete the files that no row names."""
        packs, blobs = self.catalog.pack_sizes(), self.catalog.blob_digests()
        strays = [path for path in self.packs_dir.iterdir() if path.suffix != ".pack" or path.stem not in packs]
        strays += [path for path in self.blobs_dir.iterdir() if path.name not in blobs]
        strays += self.packages.strays(self.catalog)
        return [path for path in strays if removed(path)]

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_out_of_space(error):
                raise
            raise DiskFull(f"the disk of {self.folder} is full: free space, or lower --disk so that unused models go earlier") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "import.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class StoreWriter:
    """One import's writes. Made by `TensorStore.writing` only."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._pack_path = store.packs_dir / f"{uuid4().hex}.tmp"
        self._pack = _LazyFile(self._pack_path)
        self._uncommitted = [self._pack_path]
        self._digests: set[TensorDigest] = set()
        self._written: list[tuple[TensorSpec, int]] = []
        self._blobs: list[tuple[Digest, str, int]] = []
        self._has_new_blob = False
        self._recognizer = Recognizer(store.catalog, store.packs_dir)
        self._sketches: list[tuple[Digest, TensorDigest]] = []

    @property
    def new_bytes(self) -> int:
        """Size of the tensors that no earlier import had brought."""
        return sum(tensor.size_bytes for tensor, _ in self._written)

    def add_tensor(self, name: str, array: NDArray[np.float32] | NDArray[np.int8]) -> TensorSpec:
        """Store the tensor unless it is known, and return it with its digest: sha256 over type, shape and little-endian bytes."""
        dtype: Dtype = "I8" if array.dtype == np.int8 else "F32"
        values = np.ascontiguousarray(array, dtype="i1" if dtype == "I8" else "<f4").reshape(-1).view(np.uint8)
        unnamed = TensorSpec(name, TensorDigest(""), tuple(array.shape), values.nbytes, dtype)
        sketch = sketch_of(layout_of(unnamed), values) if values.nbytes % 4 == 0 else None
        known = self._recognizer.known(sketch, (values.nbytes // 4,), values) if sketch else None
        tensor = replace(unnamed, digest=(digest := known or _hashed(layout_of(unnamed), values.data)))
        if known is None and digest not in self._digests and not self._store.catalog.has_tensor(digest):
            self.append(tensor, values.data)
            if sketch:
                self._sketches.append((sketch, digest))
        return tensor

    def known_tensor(self, name: str, digest: TensorDigest, shape: tuple[int, ...]) -> TensorSpec | None:
        """The float32 tensor of this digest and shape, if an earlier import brought it: it need not be read then."""
        tensor = TensorSpec(name, digest, shape, 4 * prod(shape))
        return tensor if self._store.catalog.layout_of_tensor(digest) == layout_of(tensor) else None

    def append(self, tensor: TensorSpec, data: bytes | memoryview) -> None:
        """For this module only: put the bytes at the end of the pack, aligned."""
        offset = self._pack.align(PAGE if tensor.size_bytes >= PAGE else SMALL_ALIGNMENT)
        self._pack.write(data)
        self._digests.add(tensor.digest)
        self._written.append((tensor, offset))

    def add_blob(self, kind: str, data: bytes) -> Digest:
        """Store a graph or a tokenizer under its sha256."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        path = self._store.blob_path(digest)
        if not path.exists():
            temporary = path.with_suffix(f".{uuid4().hex}.tmp")
            self._uncommitted += [temporary, path]
            temporary.write_bytes(data)
            _make_durable(temporary)
            temporary.rename(path)
            self._has_new_blob = True
        self._blobs.append((digest, kind, len(data)))
        return digest

    def commit(self, manifest: ModelManifest, uri: ArtifactUri, version: str) -> None:
        """Make the model visible under its artifact: all of it, or nothing."""
        packs = [self.finish_pack()] if self._written else []
        if self._has_new_blob:
            _make_durable(self._store.blobs_dir)
        with self._store.catalog.transaction() as sql:
            for pack, size, tensors in packs:
                insert_pack(sql, pack, size, tensors)
            sql.executemany("INSERT OR IGNORE INTO sketches VALUES (?, ?)", self._sketches)
            sql.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", self._blobs)
            insert_model(sql, manifest, time.time())
            sql.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)", (uri, version, manifest.digest))
            sql.execute("DELETE FROM refusals WHERE uri = ?", (uri,))
        self.keep()

    def keep(self) -> None:
        """What was written is committed now, and `discard` leaves it."""
        self._uncommitted.clear()

    def finish_pack(self) -> tuple[str, int, list[tuple[TensorSpec, int]]]:
        """Durable and under its final name: the pack's id, size in bytes, and each tensor with its offset."""
        size = self._pack.make_durable()
        self._pack.close()
        identity = hashlib.sha256("".join(tensor.digest for tensor, _ in self._written).encode()).hexdigest()[:32]
        self._uncommitted.append(self._store.pack_path(identity))
        self._pack_path.rename(self._store.pack_path(identity))
        _make_durable(self._store.packs_dir)
        return identity, size, self._written

    def discard(self) -> None:
        """Remove what was not committed. Does nothing after a commit."""
        self._pack.close()
        for path in self._uncommitted:
            removed(path)


class _LazyFile:
    """A file that exists only once something is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = 0

    def align(self, alignment: int) -> int:
        padding = -self._size % alignment
        if padding:
            self.write(bytes(padding))
        return self._size

    def write(self, data: bytes | memoryview) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._size += len(data)

    def make_durable(self) -> int:
        """Wait until the disk has it; the size in bytes."""
        assert self._descriptor is not None, "made durable before anything was written. This is a bug."
        os.fsync(self._descriptor)
        return self._size

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_out_of_space(error: OSError | sqlite3.OperationalError) -> bool:
    return error.errno in _OUT_OF_SPACE if isinstance(error, OSError) else error.sqlite_errorcode == sqlite3.SQLITE_FULL


def _hashed(layout: str, data: bytes | memoryview) -> TensorDigest:
    hasher = hashlib.sha256(f"F32{layout}".encode())
    hasher.update(data)
    return TensorDigest(hasher.hexdigest())


def _make_durable(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
