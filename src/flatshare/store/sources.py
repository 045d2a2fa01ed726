"""Getting a model, step 1 of 2: find its artifact in the store that the URI names, and bring it onto this disk.

Synchronous: it runs in a worker's thread or process. A URI is prefix + target as they were written, never percent-decoded.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Event
from typing import BinaryIO, Literal

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import ObjectStoreMethods

from flatshare.core.errors import BadPackage, DiskFull, StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.core.sizes import MIB, format_size
from flatshare.store import archive
from flatshare.store.remote import open_store, reason_of

_REMOTE_SCHEMES = {"s3", "gs", "az"}
_MAX_DEPTH = 4
_STATUS = re.compile(r"status code: (\d{3})")
_PARALLEL_FILES = 8
_PIECE_BYTES = 64 * MIB  # one request; with the time-out below, the slowest link that we bear does 0.5 MiB/s
_DEFAULT_LIMITS = StoreLimits()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of an artifact: its path below the artifact ("" if it is the artifact), and what changes with its content."""

    relative_path: str
    size_bytes: int
    version: str


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
        raise _missing(uri)
    kind = "directory" if files[0].relative_path else archive.archive_kind(location.path)
    if kind is None:
        raise BadPackage(f"'{uri}' is neither a folder nor an archive: name it {', '.join(archive.ARCHIVE_SUFFIXES)} if it is one.")
    return Artifact(uri, kind, _version(files), files, sum(file.size_bytes for file in files))


def fetch(artifact: Artifact, into: Path, limits: StoreLimits) -> Path:
    """Bring the artifact onto this disk, and return the folder that holds its checkpoint.

    A local folder is returned in place. All else is put below `into`, in a folder named by the artifact's version: what lies
    there under its final name is whole and right, and a second fetch, or one after a crash, does only what is missing.
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
        if artifact.kind == "directory":
            _Download(location, home).all(artifact.files)
            return home / "files"
        if not (home / "unpacked").exists():
            _unpack(artifact.files[0], artifact.kind, location, home, limits)
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


def _denied(uri: str) -> UnknownTarget:
    return UnknownTarget(f"'{uri}' may not be read: check the credentials, and that they permit to list and get objects there.")


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
        raise _denied(location.uri) from error
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
            if not entry.name.startswith("."):
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
    with _store_errors(location.uri):
        listed = [] if archive.archive_kind(location.path) else _listed(store, location, limits)
        return listed if listed or not location.key else [_object("", obstore.head(store, location.key))]


def _listed(store: ObjectStoreMethods, location: _Location, limits: StoreLimits) -> list[SourceFile]:
    found: list[SourceFile] = []
    for batch in obstore.list(store, location.key or None, chunk_size=1000):
        for meta in batch:
            path = archive.safe_path(meta["path"].removeprefix(location.key).lstrip("/"))
            if path and not any(part.startswith(".") for part in path.split("/")):
                _check_bounds(len(found), path.count("/"), location.uri, limits)
                found.append(_object(path, meta))
    return _without_folder_marks(found, location.uri)


def _without_folder_marks(files: list[SourceFile], uri: str) -> list[SourceFile]:
    """Consoles mark a folder by an empty object of its name; a disk has no place for both."""
    folders = {str(folder) for file in files for folder in PurePosixPath(file.relative_path).parents}
    for file in files:
        if file.relative_path in folders and file.size_bytes:
            raise BadPackage(f"'{uri}' holds '{file.relative_path}' both as an object and as a folder: rename one of them.")
    return [file for file in files if file.relative_path not in folders]


def _object(path: str, meta: "obstore.ObjectMeta") -> SourceFile:
    tag = meta["e_tag"]
    if tag and not tag.startswith(('"', "W/")):
        tag = f'"{tag}"'  # some servers leave the quotes out in lists, and only there
    return SourceFile(path, meta["size"], tag or meta["last_modified"].isoformat())


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Tell apart what is missing, what is denied and what is out of reach."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(uri) from error
    except PreconditionError as error:
        raise _changed(uri) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise _denied(uri) from error
    except (BaseError, ValueError) as error:
        # What a list met: obstore gives all of it one type, and the status in the text.
        reason = reason_of(error)
        status = _STATUS.search(reason)
        if status and status[1] in {"401", "403"}:
            raise _denied(uri) from error
        if status and status[1] == "404":
            raise _missing(uri) from error
        raise StoreUnavailable(f"The store of '{uri}' does not answer as it should ({reason}): try again.") from error


def _missing(uri: str) -> UnknownTarget:
    return UnknownTarget(f"Nothing lies at '{uri}': upload a model's folder or archive there, or correct the target model.")


def _changed(uri: str) -> StoreUnavailable:
    return StoreUnavailable(f"'{uri}' changed while it was read: try again, and upload a new model under a new name.")


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


class _Download:
    """Objects of one artifact on their way here. What an interrupted fetch left is kept: the home's name tells its version."""

    def __init__(self, location: _Location, home: Path) -> None:
        self._store = open_store(location.bucket)
        self._location = location
        self._home = home
        self._is_over = Event()

    def all(self, files: Iterable[SourceFile]) -> None:
        """Complete each file of a folder. The first error ends the others too."""
        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            jobs = [pool.submit(self.one, file, self._home / "files" / file.relative_path) for file in files]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                self._is_over.set()
                pool.shutdown(cancel_futures=True)

    def one(self, file: SourceFile, target: Path) -> None:
        """Complete one file."""
        if target.exists():
            return
        part = self._home / "parts" / f"{sha256(file.relative_path.encode()).hexdigest()[:32]}.part"
        part.parent.mkdir(exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            if out.tell() > file.size_bytes:
                out.truncate(0)
            while (start := out.seek(0, os.SEEK_END)) < file.size_bytes:
                if self._is_over.is_set():
                    return
                self._piece(file, start, out)
        part.rename(target)

    def _piece(self, file: SourceFile, start: int, out: BinaryIO) -> None:
        key = f"{self._location.key}/{file.relative_path}".strip("/")
        end = min(start + _PIECE_BYTES, file.size_bytes)
        is_strong = file.version.startswith('"')  # If-Match never holds for a weak tag (RFC 9110, 13.1.1)
        options = {"range": (start, end)} | ({"if_match": file.version} if is_strong else {})
        with _store_errors(f"{self._location.bucket}/{key}"):
            answer = obstore.get(self._store, key, options=options)
            # Not every server heeds If-Match.
            if _object(file.relative_path, answer.meta) != file or answer.range != (start, end):
                raise _changed(self._location.uri)
            out.writelines(answer.stream(min_chunk_size=MIB))
        if out.tell() != end:
            raise StoreUnavailable(f"The store ended its answer for '{key}' too early: try again.")


def _unpack(file: SourceFile, kind: archive.ArchiveKind, location: _Location, home: Path, limits: StoreLimits) -> None:
    for leftover in home.glob("unpacked.unpacking-*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    if location.is_local:
        path = Path(location.path)
        if not path.is_file() or _source_file("", path.stat()) != file:
            raise _changed(location.uri)
        archive.unpack(path, home / "unpacked", kind, limits)
        return
    packed = home / "packed"
    _Download(location, home).one(file, packed)
    try:
        archive.unpack(packed, home / "unpacked", kind, limits)
    finally:
        packed.unlink()
