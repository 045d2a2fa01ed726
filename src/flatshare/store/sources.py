"""Getting a model, step 1 of 2: find its artifact in the store that the URI names, and bring it onto this disk.

Synchronous: it runs in a worker's thread or process. A URI is prefix + target as they were written, never percent-decoded.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal

import obstore
from obstore.store import ObjectStoreMethods

from flatshare.core.call import Urgency
from flatshare.core.errors import BadPackage, DiskFull, StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import DiskSettings, StoreLimits
from flatshare.core.sizes import format_size
from flatshare.store import archive
from flatshare.store.download import Download
from flatshare.store.leftovers import is_left_out
from flatshare.store.link import Link
from flatshare.store.objects import SourceFile, changed, denied, missing, object_file, store_errors
from flatshare.store.remote import open_store

_REMOTE_SCHEMES = {"s3", "gs", "az"}
_MAX_DEPTH = 4
_DEFAULT_LIMITS = StoreLimits()


@dataclass(frozen=True, slots=True)
class Artifact:
    """What lay at a URI when it was probed. `version` is a sha256 that changes when any of the content does."""

    uri: ArtifactUri
    kind: Literal["directory"] | archive.ArchiveKind
    version: str
    files: tuple[SourceFile, ...]
    size_bytes: int


def probe(uri: ArtifactUri, *, root: str, limits: StoreLimits = _DEFAULT_LIMITS) -> Artifact:
    """Look at what lies at `uri`, which has to lie below `root`, without reading its content.

    Raises UnknownTarget (nothing there, outside of the prefix, or denied), StoreUnavailable, BadPackage (too many files).
    """
    location = _Location.parse(uri)
    _check_prefix(location, _Location.parse(root))
    probed = _probe_local(location, root, limits) if location.is_local else _probe_remote(location, limits)
    files = tuple(sorted(probed, key=lambda file: file.relative_path))
    if not files:
        raise missing(uri)
    kind = "directory" if files[0].relative_path else archive.archive_kind(location.path)
    if kind is None:
        raise BadPackage(f"'{uri}' is neither a folder nor an archive: name it {', '.join(archive.ARCHIVE_SUFFIXES)} if it is one.")
    return Artifact(uri, kind, _version(files), files, sum(file.size_bytes for file in files))


def fetch(artifact: Artifact, into: Path, limits: StoreLimits, link: Link | None = None) -> Path:
    """Bring the artifact onto this disk, and return the folder that holds its checkpoint.

    A local folder is returned in place. All else is put below `into`, in a folder named by the artifact's version: what lies
    there under its final name is whole and right, and a second fetch, or one after a crash, does only what is missing.
    `link` bounds what comes from afar; without one, it comes as fast as it can.
    Raises UnknownTarget, StoreUnavailable (also if the content changed since the probe), BadPackage, DiskFull.
    """
    location = _Location.parse(artifact.uri)
    if artifact.kind == "directory" and location.is_local:
        return Path(os.path.realpath(location.path))  # as it was probed, should a link be turned meanwhile
    if artifact.size_bytes > limits.max_unpacked_bytes:
        most = format_size(limits.max_unpacked_bytes)
        raise BadPackage(f"'{artifact.uri}' has {format_size(artifact.size_bytes)}, and the limit for one model is {most}.")
    home = into / artifact.version[:32]
    with archive.disk_errors(into), _locked(home):
        way = link or Link(into, DiskSettings(), Urgency.DEMAND)
        if artifact.kind == "directory":
            (home / "files").mkdir(exist_ok=True)
            wanted = ((file, home / "files" / file.relative_path) for file in artifact.files)
            Download(location.bucket, location.key, home, way).all(wanted)
            return home / "files"
        if not (home / "unpacked").exists():
            _unpack(artifact.files[0], artifact.kind, location, home, limits, way)
        return archive.checkpoint_folder(home / "unpacked")


@dataclass(frozen=True, slots=True)
class _Location:
    """A URI taken apart, its path without a slash at the end."""

    uri: ArtifactUri
    scheme: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> "_Location":
        scheme, separator, path = uri.partition("://")
        if not separator or scheme not in {"file", *_REMOTE_SCHEMES}:
            raise UnknownTarget(f"'{uri}' names no store that can be read: use s3://, gs://, az:// or file:///.")
        return cls(ArtifactUri(uri), scheme, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def bucket(self) -> str:
        return f"{self.scheme}://{self.path.partition('/')[0]}"

    @property
    def key(self) -> str:
        return self.path.partition("/")[2]


def _check_prefix(location: _Location, root: _Location) -> None:
    below = location.path.removeprefix(root.path)
    is_below = location.scheme == root.scheme and location.path.startswith(root.path) and below[:1] in {"", "/"}
    if not is_below or any(part in {"", ".", ".."} for part in below.split("/")[1:]):
        raise _outside(location.uri)
    if any(character < " " or character == "\x7f" for character in location.path):
        raise UnknownTarget("The target model's name holds control characters: no artifact can have it.")


def _outside(uri: str) -> UnknownTarget:
    return UnknownTarget(f"'{uri}' lies outside of the endpoint's prefix: name a path below it, and let no link lead out of it.")


def _version(files: Iterable[SourceFile]) -> str:
    """A digest of every path, size and version."""
    lines = (f"{file.relative_path}\0{file.size_bytes}\0{file.version}\0" for file in files)
    return sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _probe_local(location: _Location, root: str, limits: StoreLimits) -> list[SourceFile]:
    """Plain os calls on strings: this stands on the path of every cold start."""
    try:
        real_root = os.path.realpath(_Location.parse(root).path or "/")
        top = _real_path_inside(location.path or "/", real_root, location.uri)
        if os.path.isdir(top):  # noqa: PTH112 - see above
            return _walk(top, real_root, location.uri, limits)
        return [_source_file("", os.stat(top))]  # noqa: PTH116 - see above
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise denied(location.uri) from error
    except OSError as error:
        raise StoreUnavailable(f"'{location.uri}' cannot be read ({error.strerror}): check the disk, and try again.") from error


def _walk(top: str, real_root: str, uri: str, limits: StoreLimits) -> list[SourceFile]:
    found: list[SourceFile] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _entries(f"{top}/{folder}"):
            path = f"{folder}{entry.name}"
            _check_bounds(len(found) + len(folders), folder.count("/"), uri, limits)
            if entry.is_symlink():
                _real_path_inside(entry.path, real_root, uri)
            if entry.is_dir():
                folders.append(f"{path}/")
            elif entry.is_file():
                found.append(_source_file(path, entry.stat()))
            else:
                raise BadPackage(f"'{path}' in '{uri}' is neither a file nor a folder: remove it, or mend the link.")
    return found


def _entries(folder: str) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_left_out((entry.name,)):
                yield entry


def _source_file(path: str, status: os.stat_result) -> SourceFile:
    """ctime and inode cannot be set back, so another file of the same size and time is another version."""
    return SourceFile(path, status.st_size, f"{status.st_mtime_ns}.{status.st_ctime_ns}.{status.st_ino}")


def _real_path_inside(path: str, real_root: str, uri: str) -> str:
    """The path after all links. Raises UnknownTarget if they lead out of the root."""
    real_path = os.path.realpath(path)
    if real_path != real_root and not real_path.startswith(real_root.rstrip("/") + "/"):
        raise _outside(uri)
    return real_path


def _check_bounds(count: int, depth: int, uri: str, limits: StoreLimits) -> None:
    if count >= limits.max_files:
        raise BadPackage(f"'{uri}' holds more than {limits.max_files} files, the limit: name the folder of one model.")
    if depth > _MAX_DEPTH:
        raise BadPackage(f"'{uri}' has folders nested more than {_MAX_DEPTH} deep: name the folder of one model.")


def _probe_remote(location: _Location, limits: StoreLimits) -> list[SourceFile]:
    store = open_store(location.bucket)
    with store_errors(location.uri):
        listed = [] if archive.archive_kind(location.path) else _listed(store, location, limits)
        return listed if listed or not location.key else [object_file("", obstore.head(store, location.key))]


def _listed(store: ObjectStoreMethods, location: _Location, limits: StoreLimits) -> list[SourceFile]:
    found: list[SourceFile] = []
    for batch in obstore.list(store, location.key or None, chunk_size=1000):
        for meta in batch:
            path = archive.safe_path(meta["path"].removeprefix(location.key).lstrip("/"))
            if path and not is_left_out(path.split("/")):
                _check_bounds(len(found), path.count("/"), location.uri, limits)
                found.append(object_file(path, meta))
    return _without_folder_marks(found, location.uri)


def _without_folder_marks(files: list[SourceFile], uri: str) -> list[SourceFile]:
    """Consoles mark a folder by an empty object of its name; a disk has no place for both."""
    folders = {str(folder) for file in files for folder in PurePosixPath(file.relative_path).parents}
    for file in files:
        if file.relative_path in folders and file.size_bytes:
            raise BadPackage(f"'{uri}' holds '{file.relative_path}' both as an object and as a folder: rename one of them.")
    return [file for file in files if file.relative_path not in folders]


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process at a time fills the folder. The lock has no deadline: its holder's requests do, and dying frees it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except (DiskFull, OSError):
            shutil.rmtree(home / "parts", ignore_errors=True)
            raise


def _unpack(file: SourceFile, kind: archive.ArchiveKind, location: _Location, home: Path, limits: StoreLimits, link: Link) -> None:
    for leftover in home.glob("unpacked.unpacking-*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    if location.is_local:
        path = Path(location.path)
        if not path.is_file() or _source_file("", path.stat()) != file:
            raise changed(location.uri)
        archive.unpack(path, home / "unpacked", kind, limits)
        return
    packed = home / "packed"
    Download(location.bucket, location.key, home, link).all([(file, packed)])
    try:
        archive.unpack(packed, home / "unpacked", kind, limits)
    finally:
        packed.unlink()
