"""The catalog: which tensor lies in which pack, which model is made of which tensors, which artifact became which model.

One SQLite file per machine, shared by all instances on it. A row appears only after the bytes that it names are on the disk,
so whatever is on the disk without a row is rubbish that an interrupted import left.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flatshare.core import manifest_json
from flatshare.core.ids import ArtifactUri, Digest, ModelDigest, TensorDigest
from flatshare.core.spec import ModelManifest, TensorPlace, TensorSpec

_PATIENCE_S = 30
SCHEMA = """
CREATE TABLE IF NOT EXISTS packs (id TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tensors (
    digest TEXT PRIMARY KEY, pack TEXT NOT NULL REFERENCES packs, offset INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    shape TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tensors_by_pack ON tensors (pack);
CREATE TABLE IF NOT EXISTS sketches (
    sketch TEXT PRIMARY KEY, tensor TEXT NOT NULL REFERENCES tensors ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sketches_by_tensor ON sketches (tensor);
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
    digest TEXT PRIMARY KEY, manifest BLOB NOT NULL, imported_s REAL NOT NULL, used_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model_tensors (
    model TEXT NOT NULL REFERENCES models ON DELETE CASCADE, tensor TEXT NOT NULL REFERENCES tensors,
    PRIMARY KEY (model, tensor)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS model_tensors_by_tensor ON model_tensors (tensor);
CREATE TABLE IF NOT EXISTS package_files (
    model TEXT NOT NULL REFERENCES models ON DELETE CASCADE, file TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    PRIMARY KEY (model, file)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file_tensors (
    tensor TEXT PRIMARY KEY, file TEXT NOT NULL, offset INTEGER NOT NULL, size_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifacts (
    uri TEXT PRIMARY KEY, version TEXT NOT NULL, model TEXT NOT NULL REFERENCES models ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS artifacts_by_model ON artifacts (model);
CREATE TABLE IF NOT EXISTS footprints (model TEXT PRIMARY KEY, own_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS imports (model TEXT PRIMARY KEY, took_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trunks (uri TEXT PRIMARY KEY, version TEXT NOT NULL, tensors TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (
    uri TEXT PRIMARY KEY, version TEXT NOT NULL, error TEXT NOT NULL, sentence TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an artifact was not imported, remembered until the artifact changes."""

    error: str
    sentence: str


@dataclass(frozen=True, slots=True)
class CatalogedModel:
    """A model as `flatshare models` lists it."""

    uris: tuple[str, ...]
    manifest: ModelManifest
    imported_s: float
    used_s: float


@dataclass(frozen=True, slots=True)
class SketchedTensor:
    """A tensor that a sketch led to."""

    digest: TensorDigest
    place: TensorPlace
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the catalog's models weigh, in bytes: as if each stood alone, each tensor once, and on the disk."""

    models: int
    sum_bytes: int
    distinct_bytes: int
    packs: int
    pack_bytes: int
    blob_bytes: int

    @property
    def saved_bytes(self) -> int:
        return self.sum_bytes - self.distinct_bytes

    @property
    def distinct_share(self) -> float:
        return self.distinct_bytes / self.sum_bytes if self.sum_bytes else 1.0


class Catalog:
    """Reads and writes the SQLite file. Safe from several threads and processes; every write is one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        with self.transaction() as sql:
            for statement in SCHEMA.split(";\n"):
                sql.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it, or nothing."""
        sql = self._connection()
        sql.execute("BEGIN IMMEDIATE")
        try:
            yield sql
            sql.execute("COMMIT")
        except BaseException:
            if sql.in_transaction:  # SQLite has ended it already if the disk is full
                sql.execute("ROLLBACK")
            raise

    def model_of(self, uri: ArtifactUri, version: str) -> ModelDigest | None:
        row = self._one("SELECT model FROM artifacts WHERE uri = ? AND version = ?", uri, version)
        return ModelDigest(row[0]) if row else None

    def last_model_of(self, uri: ArtifactUri) -> ModelDigest | None:
        """What the artifact was when it was last imported."""
        row = self._one("SELECT model FROM artifacts WHERE uri = ?", uri)
        return ModelDigest(row[0]) if row else None

    def refusal_of(self, uri: ArtifactUri, version: str) -> Refusal | None:
        row = self._one("SELECT error, sentence FROM refusals WHERE uri = ? AND version = ?", uri, version)
        return Refusal(row[0], row[1]) if row else None

    def remember_refusal(self, uri: ArtifactUri, version: str, refusal: Refusal) -> None:
        with self.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)", (uri, version, refusal.error, refusal.sentence))

    def forget_refusals(self) -> None:
        """At a start: another version of this program may serve what the last one refused."""
        with self.transaction() as sql:
            sql.execute("DELETE FROM refusals")

    def manifest(self, digest: ModelDigest) -> ModelManifest | None:
        row = self._one("SELECT manifest FROM models WHERE digest = ?", digest)
        return manifest_json.from_json(row[0]) if row else None

    def places(self, digest: ModelDigest) -> dict[TensorDigest, TensorPlace]:
        rows = self._connection().execute(
            "SELECT t.digest, t.pack, t.offset FROM model_tensors m JOIN tensors t ON t.digest = m.tensor WHERE m.model = ?",
            (digest,),
        )
        return {TensorDigest(tensor): TensorPlace(pack, offset) for tensor, pack, offset in rows}

    def has_tensor(self, digest: TensorDigest) -> bool:
        return self._one("SELECT 1 FROM tensors WHERE digest = ?", digest) is not None

    def layout_of_tensor(self, digest: TensorDigest) -> str | None:
        """Shape and type of a tensor that is here (`layout_of`)."""
        row = self._one("SELECT shape FROM tensors WHERE digest = ?", digest)
        return row[0] if row else None

    def trunk(self, uri: ArtifactUri, version: str) -> frozenset[str]:
        """The digests of a trunk that was verified on this machine as it is now; empty if it was not."""
        row = self._one("SELECT tensors FROM trunks WHERE uri = ? AND version = ?", uri, version)
        return frozenset(orjson.loads(row[0])) if row else frozenset()

    def remember_trunk(self, uri: ArtifactUri, version: str, digests: Iterable[str]) -> None:
        with self.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO trunks VALUES (?, ?, ?)", (uri, version, orjson.dumps(sorted(digests))))

    def sketched(self, sketch: Digest) -> SketchedTensor | None:
        """The tensor that was stored with this sketch (store/recognition.py)."""
        statement = (
            "SELECT t.digest, t.pack, t.offset, t.size_bytes FROM sketches s JOIN tensors t ON t.digest = s.tensor WHERE s.sketch = ?"
        )
        row = self._one(statement, sketch)
        return SketchedTensor(TensorDigest(row[0]), TensorPlace(row[1], row[2]), row[3]) if row else None

    def touch(self, digest: ModelDigest, now_s: float) -> None:
        """Note that the model was loaded, so that disk eviction knows what is in use. A full disk is no reason to fail."""
        with suppress(sqlite3.OperationalError), self.transaction() as sql:
            sql.execute("UPDATE models SET used_s = ? WHERE digest = ?", (now_s, digest))

    def measured_own_bytes(self, digest: ModelDigest) -> int | None:
        row = self._one("SELECT own_bytes FROM footprints WHERE model = ?", digest)
        return row[0] if row else None

    def remember_footprint(self, digest: ModelDigest, own_bytes: int) -> None:
        """The most that a load was seen to take. A full disk is no reason to fail."""
        with suppress(sqlite3.OperationalError), self.transaction() as sql:
            sql.execute(
                "INSERT INTO footprints VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET own_bytes = MAX(own_bytes, excluded.own_bytes)",
                (digest, own_bytes),
            )

    def remember_import(self, digest: ModelDigest, took_s: float) -> None:
        """How long it took to bring the model onto this disk. A full disk is no reason to fail."""
        with suppress(sqlite3.OperationalError), self.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO imports VALUES (?, ?)", (digest, took_s))

    def import_times(self) -> dict[ModelDigest, float]:
        """In seconds, of the models for which it is known."""
        return {ModelDigest(row[0]): row[1] for row in self._connection().execute("SELECT model, took_s FROM imports")}

    def artifacts(self) -> set[ArtifactUri]:
        """Those of which a version is on this disk, or was refused."""
        return {ArtifactUri(row[0]) for row in self._connection().execute("SELECT uri FROM artifacts UNION SELECT uri FROM refusals")}

    def artifacts_below(self, folder: str) -> list[ArtifactUri]:
        """Those below this URI of which a version is on this disk."""
        rows = self._connection().execute("SELECT uri FROM artifacts WHERE uri > ? AND uri < ? ORDER BY uri", (f"{folder}/", f"{folder}0"))
        return [ArtifactUri(row[0]) for row in rows]  # "0" comes next after "/"

    def link_artifact(self, uri: ArtifactUri, version: str, digest: ModelDigest) -> None:
        with self.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)", (uri, version, digest))
            sql.execute("DELETE FROM refusals WHERE uri = ?", (uri,))

    def forget_artifact(self, uri: ArtifactUri) -> bool:
        """Drop what is known of `uri`; its model goes at the next collection unless another artifact is the same model."""
        with self.transaction() as sql:
            refused = sql.execute("DELETE FROM refusals WHERE uri = ?", (uri,)).rowcount
            return sql.execute("DELETE FROM artifacts WHERE uri = ?", (uri,)).rowcount + refused > 0

    def models(self) -> list[CatalogedModel]:
        uris: dict[str, list[str]] = {}
        for uri, model in self._connection().execute("SELECT uri, model FROM artifacts ORDER BY uri"):
            uris.setdefault(model, []).append(uri)
        rows = self._connection().execute("SELECT digest, manifest, imported_s, used_s FROM models").fetchall()
        found = [CatalogedModel(tuple(uris.get(row[0], ())), manifest_json.from_json(row[1]), row[2], row[3]) for row in rows]
        return sorted(found, key=lambda model: model.uris)

    def usage(self) -> DiskUsage:
        models = self._count("SELECT COUNT(*) FROM models")
        total = self._count("SELECT SUM(t.size_bytes) FROM model_tensors m JOIN tensors t ON t.digest = m.tensor")
        distinct = self._count("SELECT SUM(size_bytes) FROM tensors WHERE digest IN (SELECT tensor FROM model_tensors)")
        packs = self._one("SELECT COUNT(*), SUM(size_bytes) FROM packs")
        blobs = self._count("SELECT SUM(size_bytes) FROM blobs")
        return DiskUsage(models, total, distinct, packs[0] if packs else 0, (packs[1] if packs else 0) or 0, blobs)

    def disk_bytes(self) -> int:
        packs = self._count("SELECT (SELECT COALESCE(SUM(size_bytes), 0) FROM packs) + (SELECT COALESCE(SUM(size_bytes), 0) FROM blobs)")
        return packs + self._count("SELECT SUM(size_bytes) FROM (SELECT DISTINCT file, size_bytes FROM package_files)")

    def file_digests(self) -> set[Digest]:
        """The files that some package holds."""
        return {Digest(row[0]) for row in self._connection().execute("SELECT DISTINCT file FROM package_files")}

    def package_digests(self) -> set[ModelDigest]:
        """The models that have a folder of files."""
        return {ModelDigest(row[0]) for row in self._connection().execute("SELECT DISTINCT model FROM package_files")}

    def file_with_tensor(self, tensor: Digest) -> tuple[Digest, int] | None:
        """A file of weights on this machine that holds these bytes, and where in it."""
        row = self._one("SELECT file, offset FROM file_tensors WHERE tensor = ?", tensor)
        return (Digest(row[0]), row[1]) if row else None

    def tensor_bytes_in(self, file: Digest) -> int:
        """Bytes of the tensors that others find in this file."""
        return self._count_of("SELECT SUM(size_bytes) FROM file_tensors WHERE file = ?", file)

    def pack_sizes(self) -> dict[str, int]:
        return dict(self._connection().execute("SELECT id, size_bytes FROM packs"))

    def blob_digests(self) -> set[Digest]:
        return {Digest(row[0]) for row in self._connection().execute("SELECT digest FROM blobs")}

    def tensors_in(self, pack: str) -> list[tuple[TensorDigest, TensorPlace, int, str]]:
        """Digest, place, size in bytes and shape text of every tensor in a pack."""
        rows = self._connection().execute(
            "SELECT digest, pack, offset, size_bytes, shape FROM tensors WHERE pack = ? ORDER BY offset", (pack,)
        )
        return [(TensorDigest(row[0]), TensorPlace(row[1], row[2]), row[3], row[4]) for row in rows]

    def _one(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection().execute(statement, values).fetchone()
        return row

    def _count(self, statement: str) -> int:
        return self._count_of(statement)

    def _count_of(self, statement: str, *values: object) -> int:
        row = self._one(statement, *values)
        return int(row[0]) if row and row[0] is not None else 0

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None)
            _use_log(connection)
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last imports, never the order of things
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA cache_size = -256")  # KiB; the page cache has the file anyway
            self._local.connection = connection
        return connection


def _use_log(connection: sqlite3.Connection) -> None:
    """A write-ahead log, so that readers wait for no writer. A new file becomes so once, for which SQLite does not wait for others."""
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)  # another process is doing the same: there is no event to wait for


def layout_of(tensor: TensorSpec) -> str:
    """Shape and type as the catalog keeps them: `[2,3]` is float32, `I8[2,3]` is int8."""
    shape = orjson.dumps(tensor.shape).decode()
    return shape if tensor.dtype == "F32" else tensor.dtype + shape


def insert_pack(sql: sqlite3.Connection, pack: str, size_bytes: int, tensors: Iterable[tuple[TensorSpec, int]]) -> None:
    """A pack and the tensors in it, each with its offset. A tensor that another pack holds already stays there."""
    sql.execute("INSERT OR REPLACE INTO packs VALUES (?, ?)", (pack, size_bytes))
    rows = [(tensor.digest, pack, offset, tensor.size_bytes, layout_of(tensor)) for tensor, offset in tensors]
    sql.executemany("INSERT OR IGNORE INTO tensors VALUES (?, ?, ?, ?, ?)", rows)


def insert_model(sql: sqlite3.Connection, manifest: ModelManifest, now_s: float) -> None:
    sql.execute("INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?)", (manifest.digest, manifest_json.to_json(manifest), now_s, now_s))
    rows = [(manifest.digest, tensor) for tensor in manifest.distinct_tensors]
    sql.executemany("INSERT OR IGNORE INTO model_tensors VALUES (?, ?)", rows)
    files = [(manifest.digest, file.digest, file.size_bytes) for file in manifest.files]
    sql.executemany("INSERT OR IGNORE INTO package_files VALUES (?, ?, ?)", files)


def insert_file_tensors(sql: sqlite3.Connection, rows: Iterable[tuple[str, str, int, int]]) -> None:
    """Tensor, file, offset and size in bytes. A tensor that another file holds already stays there."""
    sql.executemany("INSERT OR IGNORE INTO file_tensors VALUES (?, ?, ?, ?)", rows)
