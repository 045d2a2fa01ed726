"""Packages: models that are served from their own files. Each distinct file once on the disk, each package a folder of hard links.

    store/files/DIGEST          the files of all packages, by sha256
    store/packages/MODEL/…      a package as it was unpacked; nothing in it ever changes
    store/environments/DIGEST   an unpacked EXECUTION_ENV_PATH, by the digest of its archive

Written under the store's import lock, durable before a row names it. What no row names goes with the next repair or collection.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from flatshare.core.ids import Digest, ModelDigest
from flatshare.store.catalog import Catalog

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that lies in the store, and where a package wants it."""

    path: str
    digest: Digest
    size_bytes: int


class PackageArea:
    """The three folders. `add` and `assemble` only while the store is locked for writing."""

    def __init__(self, store_dir: Path) -> None:
        self.files_dir = store_dir / "files"
        self.packages_dir = store_dir / "packages"
        self.environments_dir = store_dir / "environments"
        for directory in (self.files_dir, self.packages_dir, self.environments_dir):
            directory.mkdir(parents=True, exist_ok=True)

    def file_path(self, digest: Digest) -> Path:
        return self.files_dir / digest

    def package_path(self, model: ModelDigest) -> Path:
        return self.packages_dir / model

    def add(self, source: Path, path: str) -> StoredFile:
        """Copy a file into the store unless it is known, hashing it on the way."""
        temporary = self.files_dir / f"{uuid4().hex}.tmp"
        digest = hashlib.sha256()
        size = 0
        try:
            with source.open("rb") as reader, temporary.open("xb") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    size += writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            temporary.chmod(0o444)
            name = Digest(digest.hexdigest())
            if not self.file_path(name).exists():  # a new file under the name would be another to whoever has mapped the old one
                temporary.rename(self.file_path(name))
        finally:
            temporary.unlink(missing_ok=True)
        return StoredFile(path, name, size)

    def assemble(self, model: ModelDigest, files: Iterable[StoredFile]) -> None:
        """The package's folder, complete or not at all."""
        folder = self.packages_dir / f"{uuid4().hex}.tmp"
        try:
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(self.file_path(file.digest))
            if not self.package_path(model).exists():
                folder.rename(self.package_path(model))
            _make_durable(self.packages_dir)
            _make_durable(self.files_dir)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def strays(self, catalog: Catalog) -> Iterator[Path]:
        """Files and folders that no row names."""
        files, packages = catalog.file_digests(), catalog.package_digests()
        yield from (path for path in self.files_dir.iterdir() if path.name not in files)
        yield from (path for path in self.packages_dir.iterdir() if path.name not in packages)
        yield from (path for path in self.environments_dir.iterdir() if path.name not in files)

    def lost(self, catalog: Catalog) -> list[ModelDigest]:
        """Models whose folder has gone."""
        return [model for model in catalog.package_digests() if not self.package_path(model).is_dir()]


def removed(path: Path) -> bool:
    """Delete a file or a folder; False if it was gone already."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return True
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _make_durable(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
