"""Getting a model, step 2 of 2: unpack its archive, trusting nothing that the archive says about itself.

The headers are decoded by `tarfile.TarInfo.frombuf`; the order of members, their names, sizes and extensions are read here,
because `TarFile` itself ends without a word at a damaged header, reads a pax header of any size into memory, follows chains
of them by recursion and (before 3.11.10, CVE-2024-6232) by a regular expression of quadratic cost.
"""

import errno
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, assert_never, cast

import zstandard

from flatshare.core.errors import BadPackage, DiskFull, UnsafeArchive
from flatshare.core.settings import StoreLimits
from flatshare.core.sizes import MIB, format_size

ArchiveKind = Literal["tar", "tar.gz", "tar.zst"]
ARCHIVE_SUFFIXES: dict[str, ArchiveKind] = {
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.zst": "tar.zst",
    ".tzst": "tar.zst",
}

_BLOCK_BYTES = tarfile.BLOCKSIZE
_CHUNK_BYTES = MIB
_EXTENSION_BYTES = 64 * 1024  # a path of 1024 bytes, times and a few extended attributes need a tenth of it
_EXTENSIONS_PER_MEMBER = 4  # writers emit one or two
_LARGEST_PLAIN_SIZE = 8 * 2**30  # eleven octal digits; only beyond may a pax header correct the plain one
_RATIO_COUNTS_FROM_BYTES = 64 * MIB
_ZSTD_WINDOW_BYTES = 128 * MIB  # what the zstd command itself accepts without --long
_NAME_BYTES = 255
_PATH_BYTES = 1024


def unpack(archive: Path, into: Path, kind: ArchiveKind, limits: StoreLimits) -> None:
    """Unpack `archive` to the new folder `into`, which appears complete or not at all.

    Raises UnsafeArchive for what an honest archive never holds, BadPackage for a damaged one, DiskFull.
    """
    with disk_errors(into), _new_folder(into) as top, archive.open("rb") as packed:
        stream = _Stream(_decompressed(packed, kind), archive.stat().st_size, limits)
        tree = _Tree(top, limits)
        for member in _members(stream):
            tree.add(member, stream)
        stream.drain()
        if tree.is_empty:
            raise BadPackage(f"The archive '{archive.name}' is empty: pack the model's folder again.")


def archive_kind(name: str) -> ArchiveKind | None:
    """The kind that a name promises, None if it is not an archive's."""
    return next((kind for suffix, kind in ARCHIVE_SUFFIXES.items() if name.endswith(suffix)), None)


def checkpoint_folder(unpacked: Path) -> Path:
    """The unpacked tree, or its only folder, as the archive of a folder has one. Hidden files (`._x` of macOS) do not count."""
    visible = [path for path in unpacked.iterdir() if not path.name.startswith(".")]
    return visible[0] if len(visible) == 1 and visible[0].is_dir() else unpacked


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's words for "no room" into DiskFull."""
    try:
        yield
    except OSError as error:
        # EFBIG is what a process meets whose files may not grow further (ulimit -f).
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise DiskFull(f"The disk under {folder} is full: free some space, or give the instance a larger disk.") from error


def safe_path(name: str) -> str:
    """The path that `name` means below its folder, "" for the folder itself. Raises UnsafeArchive if it could mean another."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise UnsafeArchive(f"The name {name!a} is not UTF-8: rename the file.") from None
    if name.startswith("/") or ".." in parts or "\\" in name or (parts and parts[0][1:2] == ":"):
        raise UnsafeArchive(f"The path {_shown(name)} leads out of its folder: pack the files by paths relative to the model's folder.")
    if any(character < " " or character == "\x7f" for character in name):
        raise UnsafeArchive(f"The path {_shown(name)} holds control characters: rename the file.")
    if max(lengths, default=0) > _NAME_BYTES or sum(lengths) + len(parts) > _PATH_BYTES:
        raise UnsafeArchive(f"The path {_shown(name)} is too long: at most {_NAME_BYTES} bytes a name, {_PATH_BYTES} a path.")
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class _Member:
    path: str
    is_folder: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Extension:
    """What the headers before a member say about it."""

    path: str | None = None
    size_bytes: int | None = None
    headers: int = 0


class _Stream:
    """An archive's unpacked bytes, counted while they are read, so that a bomb is stopped and not measured."""

    def __init__(self, raw: BinaryIO, packed_bytes: int, limits: StoreLimits) -> None:
        self._raw = raw
        self._packed_bytes = packed_bytes
        self._limits = limits
        self._read_bytes = 0

    def read(self, size: int) -> bytes:
        """Exactly so many bytes: an archive that ends before is damaged."""
        data = self._read(size)
        if len(data) < size:
            raise BadPackage("The archive ends in the middle: it was cut short. Upload it again.")
        return data

    def expect(self, size: int) -> None:
        """Refuse now what would break the limit on its way."""
        most = self._limits.max_unpacked_bytes
        if self._read_bytes + size > most:
            raise UnsafeArchive(f"The archive unpacks to more than {format_size(most)}, the limit for one model.")

    def drain(self) -> None:
        """Read what follows the last member, so that the checksums at the end are verified."""
        while self._read(_CHUNK_BYTES):
            pass

    def _read(self, size: int) -> bytes:
        try:
            data = self._raw.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise BadPackage(f"The archive is damaged or not of the kind that its name says ({error}). Pack it again.") from error
        self._read_bytes += len(data)
        self.expect(0)
        self._check_ratio()
        return data

    def _check_ratio(self) -> None:
        most = self._limits.max_expansion
        if self._read_bytes > _RATIO_COUNTS_FROM_BYTES and self._read_bytes > most * self._packed_bytes:
            raise UnsafeArchive(f"The archive swells to more than {most:g} times its size, as only a bomb does.")


class _Tree:
    """The folder that is filled: each path once, at most so many of them, owners and permissions ours."""

    def __init__(self, top: Path, limits: StoreLimits) -> None:
        self._top = top
        self._limits = limits
        self._files: set[str] = set()
        self._named_folders: set[str] = set()
        self._folders: set[str] = {""}

    @property
    def is_empty(self) -> bool:
        return not self._files

    def add(self, member: _Member, stream: _Stream) -> None:
        """Write the member, its content taken from the stream."""
        if member.path in self._files or member.path in self._named_folders or (member.path in self._folders and not member.is_folder):
            raise UnsafeArchive(f"The archive holds {_shown(member.path)} twice: pack it again with one file for each path.")
        if not member.is_folder:
            self._add_folder(member.path.rpartition("/")[0])
            self._add_file(member, stream)
        elif member.path:  # "./" stands for the top itself, and may come more than once
            self._add_folder(member.path)
            self._named_folders.add(member.path)

    def _add_file(self, member: _Member, stream: _Stream) -> None:
        self._files.add(member.path)
        self._check_count()
        path = self._top / member.path
        with path.open("xb") as file:
            left = member.size_bytes
            while left:
                left -= file.write(stream.read(min(left, _CHUNK_BYTES)))
        path.chmod(0o644)
        stream.read(-member.size_bytes % _BLOCK_BYTES)

    def _add_folder(self, path: str) -> None:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder in self._files:
                raise UnsafeArchive(f"The archive uses {_shown(folder)} both as a file and as a folder.")
            if folder not in self._folders:
                self._folders.add(folder)
                self._check_count()
                (self._top / folder).mkdir()
                (self._top / folder).chmod(0o755)

    def _check_count(self) -> None:
        if len(self._files) + len(self._folders) - 1 > self._limits.max_files:
            raise UnsafeArchive(f"The archive holds more than {self._limits.max_files} files and folders, the limit for one model.")


def _members(stream: _Stream) -> Iterator[_Member]:
    """Each member in turn. Its content has to be read before the next one is asked for."""
    extension = _Extension()
    while (header := _next_header(stream)) is not None:
        if header.size < 0:
            raise UnsafeArchive(f"The archive gives {_shown(header.name)} a negative size.")
        if header.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME}:
            extension = _extended(extension, header, stream)
            continue
        member = _member(header, extension)
        stream.expect(member.size_bytes)
        yield member
        extension = _Extension()


def _next_header(stream: _Stream) -> tarfile.TarInfo | None:
    """The next header, None at the block of zeros that ends an archive."""
    block = stream.read(_BLOCK_BYTES)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadPackage(f"The archive is damaged or not a tar archive ({error}). Pack it again.") from error


def _extended(extension: _Extension, header: tarfile.TarInfo, stream: _Stream) -> _Extension:
    """What is known of the next member, after one more header that speaks about it."""
    if header.size > _EXTENSION_BYTES or extension.headers >= _EXTENSIONS_PER_MEMBER:
        raise UnsafeArchive("The archive has extended headers larger or more than any honest one: pack it again with plain tar.")
    payload = stream.read(header.size)
    stream.read(-header.size % _BLOCK_BYTES)
    extension = replace(extension, headers=extension.headers + 1)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return replace(extension, path=_decoded(payload.removesuffix(b"\0")))
    records = _pax_records(payload)
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        raise UnsafeArchive("The archive holds a sparse file: pack it again without --sparse.")
    if header.type == tarfile.XHDTYPE:
        return _with_records(extension, records)
    if records.keys() & {"path", "size"}:
        raise UnsafeArchive("The archive gives all its members one path or size: pack it again with plain tar.")
    return extension


def _with_records(extension: _Extension, records: dict[str, str]) -> _Extension:
    size = records.get("size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise UnsafeArchive(f"The archive gives a member the size {_shown(size)}, which is none.")
    return replace(
        extension,
        path=records.get("path", extension.path),
        size_bytes=extension.size_bytes if size is None else int(size),
    )


def _pax_records(payload: bytes) -> dict[str, str]:
    """The records, each `<length> <keyword>=<value>` and a newline, in one pass."""
    records = {}
    while payload:
        digits, _, _ = payload[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = payload[:length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or not record.endswith(b"\n"):
            raise BadPackage("The archive has a damaged extended header. Pack it again.")
        records[_decoded(keyword)] = _decoded(value)
        payload = payload[length:]
    return records


def _member(header: tarfile.TarInfo, extension: _Extension) -> _Member:
    name = header.name if extension.path is None else extension.path
    if header.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
        raise UnsafeArchive(f"The archive holds {_shown(name)}, a link, a device or of another kind: pack only files and folders.")
    is_folder = header.type == tarfile.DIRTYPE
    path = safe_path(name)
    if not path and not is_folder:
        raise UnsafeArchive("The archive holds a file without a name.")
    size = header.size if extension.size_bytes is None else extension.size_bytes
    if size != header.size and size < _LARGEST_PLAIN_SIZE:
        raise UnsafeArchive(f"The archive gives {_shown(name)} two sizes, {header.size} and {size}: one of them lies.")
    return _Member(path, is_folder, 0 if is_folder else size)


@contextmanager
def _new_folder(into: Path) -> Iterator[Path]:
    """A folder beside `into`, renamed to it in the end: a killed process leaves nothing under the name `into`."""
    into.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{into.name}.unpacking-", dir=into.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(into)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decompressed(packed: BinaryIO, kind: ArchiveKind) -> BinaryIO:
    match kind:
        case "tar":
            return packed
        case "tar.gz":
            return cast("BinaryIO", gzip.GzipFile(fileobj=packed))
        case "tar.zst":
            reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            return cast("BinaryIO", reader.stream_reader(packed, read_across_frames=True, closefd=False))
        case never:
            assert_never(never)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """The name as a message may carry it: short, and without control characters."""
    return ascii(name if len(name) <= 100 else name[:100] + "…")
