"""Versions of inference code in a store: pushed once, never changed, each pinned by the digest of its files."""

import io
import re
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from flatshare.core.errors import BadPackage, UnknownTarget
from flatshare.store.leftovers import is_left_out
from flatshare.store.shelf import Shelf

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_BYTES, _MAX_FILES = 16 * 2**20, 1000  # code, not weights


class CodeVersion(msgspec.Struct, frozen=True):
    """What is known of one version."""

    name: str
    version: str
    sha256: str
    """Of its archive, which holds nothing but paths and contents."""
    files: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Code:
    """A version and its files by path."""

    version: CodeVersion
    files: dict[str, bytes]


class CodeShelf:
    """The versions below one URI: `NAME/VERSION.json` pins `NAME/VERSION.tar`."""

    def __init__(self, uri: str) -> None:
        self._shelf = Shelf(uri)

    def push(self, name: str, folder: Path, version: str | None = None) -> CodeVersion:
        """Store the folder's files under a version: the one given, or the next number. The same files again change nothing.

        Raises BadPackage if that version exists with other files: a version means one thing for ever.
        """
        _checked(name)
        data, files = _archive(folder)
        digest = sha256(data).hexdigest()
        if version is None:
            known = self.list(name)
            if known and known[-1].sha256 == digest:
                return known[-1]
            version = str(1 + max((int(k.version) for k in known if k.version.isdigit()), default=0))
        record = CodeVersion(name, _checked(version), digest, files, len(data))
        self._shelf.put_new(f"{name}/{version}.{digest[:16]}.tar", data)  # under its digest: two pushes at once do not mix
        if not self._shelf.put_new(f"{name}/{version}.json", msgspec.json.encode(record)):
            before = self.show(name, version)
            if before.sha256 != digest:
                raise BadPackage(f"version {version} of {name} exists with other files: a version never changes, push under another")
        return record

    def list(self, name: str = "") -> list[CodeVersion]:
        """Every version, or those of one name, the newest last by its number."""
        keys = [key for key in self._shelf.sizes(f"{name}/" if name else "") if key.endswith(".json") and key.count("/") == 1]
        found = [self._record(key) for key in keys]
        return sorted(found, key=lambda version: (version.name, _order(version.version)))

    def show(self, name: str, version: str = LATEST) -> CodeVersion:
        """Raises UnknownTarget, with what there is."""
        _checked(name)
        if version == LATEST:
            versions = self.list(name)
            if not versions:
                raise UnknownTarget(f"no version of the code '{name}' was pushed to {self._shelf.uri}: do so with 'flatshare code push'")
            return versions[-1]
        if self._shelf.get(f"{name}/{_checked(version)}.json") is None:
            known = ", ".join(v.version for v in self.list(name)) or "none"
            raise UnknownTarget(f"the code '{name}' has no version '{version}' at {self._shelf.uri}: it has {known}")
        return self._record(f"{name}/{version}.json")

    def get(self, name: str, version: str = LATEST, *, pinned_sha256: str | None = None) -> Code:
        """The version's files. Raises UnknownTarget, and BadPackage if they are not what was pushed, or not what the caller has pinned."""
        record = self.show(name, version)
        if pinned_sha256 is not None and record.sha256 != pinned_sha256:
            raise BadPackage(f"version {record.version} of {name} has digest {record.sha256[:12]}, {pinned_sha256[:12]} was asked for")
        found = self._shelf.get(f"{name}/{record.version}.{record.sha256[:16]}.tar")
        if found is None or sha256(found.data).hexdigest() != record.sha256:
            raise BadPackage(
                f"version {record.version} of {name} was altered or lost in {self._shelf.uri}: push it anew under another version"
            )
        with tarfile.open(fileobj=io.BytesIO(found.data)) as tar:
            return Code(record, {member.name: _content(tar, member) for member in tar.getmembers()})

    def _record(self, key: str) -> CodeVersion:
        found = self._shelf.get(key)
        if found is None:
            raise UnknownTarget(f"'{self._shelf.uri}{key}' is gone: try again")
        try:
            return msgspec.json.decode(found.data, type=CodeVersion)
        except msgspec.MsgspecError as error:
            raise BadPackage(f"'{self._shelf.uri}{key}' cannot be read: {error}") from error


def _archive(folder: Path) -> tuple[bytes, tuple[str, ...]]:
    """The files as a tar that says nothing of times and owners."""
    if not folder.is_dir():
        raise BadPackage(f"'{folder}' is no folder: inference code is a folder of files")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not is_left_out(path.relative_to(folder).parts))
    if not paths or len(paths) > _MAX_FILES or sum(path.stat().st_size for path in paths) > _MAX_BYTES:
        raise BadPackage(f"'{folder}' must hold 1 to {_MAX_FILES} files of at most {_MAX_BYTES >> 20} MiB together: code, not weights")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            data = path.read_bytes()
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue(), tuple(path.relative_to(folder).as_posix() for path in paths)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "push stores plain files only. This is a bug."
    return file.read()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == LATEST:
        raise BadPackage(
            f"'{name}' must be 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', begin with a letter or digit, and not be '{LATEST}'"
        )
    return name


def _order(version: str) -> list[tuple[int, str]]:
    """1.10 comes after 1.9: numbers count as numbers."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"[._-]", version)]
