"""Objects of one artifact on their way to this disk: by several ranges at once, each under the condition that nothing has changed.

name.part          as long as the object from the start, so that a full disk is met before the work and not after it
name.N.B.journal   how far each piece of N bytes has come, 8 bytes each; of boot B, since a power cut keeps journals and loses pages

object   |--------- piece 0 ---------|--------- piece 1 ---------|- piece 2 -|
arrived  |=================>         |=====>                     |           |     the next try asks for what is missing
"""

import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Event

import obstore

from flatshare.core.errors import StoreUnavailable
from flatshare.core.sizes import MIB
from flatshare.store import etag
from flatshare.store.link import Link
from flatshare.store.objects import SourceFile, changed, object_file, store_errors
from flatshare.store.remote import open_store

_PARALLEL = 8
_PIECE_BYTES = 8 * MIB  # one request; with the time-out of a request, the slowest link that eight of them bear does 0.5 MiB/s
_FILES_AT_ONCE = 64  # two descriptors each
_COUNT = struct.Struct("<Q")


class Download:
    """What an interrupted one left is kept: the home's name tells its version."""

    def __init__(self, bucket: str, prefix: str, home: Path, link: Link) -> None:
        self._store = open_store(bucket)
        self._bucket = bucket
        self._prefix = prefix
        self._parts = home / "parts"
        self._link = link
        self._is_over = Event()
        self._are_tags_md5 = True
        """As far as is known."""

    def all(self, wanted: Iterable[tuple[SourceFile, Path]]) -> None:
        """Complete each file under its final name. The first error ends the others too."""
        missing = [(file, target) for file, target in wanted if not target.exists()]
        self._parts.mkdir(exist_ok=True)
        with self._link.open(), ThreadPoolExecutor(_PARALLEL) as pool:
            try:
                for first in range(0, len(missing), _FILES_AT_ONCE):
                    self._several(missing[first : first + _FILES_AT_ONCE], pool)
            finally:
                self._is_over.set()
                pool.shutdown(cancel_futures=True)

    def _several(self, missing: list[tuple[SourceFile, Path]], pool: ThreadPoolExecutor) -> None:
        with _opened(self._part(file) for file, _ in missing) as parts:
            for job in as_completed([pool.submit(self._piece, piece) for part in parts for piece in part.missing()]):
                job.result()
            list(pool.map(self._check, parts))
            for part, (_, target) in zip(parts, missing, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                part.finish(target)

    def _part(self, file: SourceFile) -> "_Part":
        return _Part(file, self._parts / f"{sha256(file.relative_path.encode()).hexdigest()[:32]}.part")

    def _key(self, file: SourceFile) -> str:
        return f"{self._prefix}/{file.relative_path}".strip("/")

    def _check(self, part: "_Part") -> None:
        """Raises StoreUnavailable if what arrived is not what the store says that it has; the next try asks for all of it."""
        if not self._bucket.startswith("s3://") or not self._are_tags_md5 or etag.fits(part.file, part.path):
            return
        key = self._key(part.file)
        self._are_tags_md5 = etag.is_md5(self._store, key)
        if self._are_tags_md5:
            part.discard()
            raise StoreUnavailable(
                f"'{self._bucket}/{key}' is not what its ETag says: it was damaged on the way, or in the store. "
                f"Try again, and upload it anew if that does not help."
            )

    def _piece(self, piece: "_Piece") -> None:
        file, start = piece.part.file, piece.start
        key = self._key(file)
        is_strong = file.version.startswith('"')  # If-Match never holds for a weak tag (RFC 9110, 13.1.1)
        options = {"range": (start, piece.end)} | ({"if_match": file.version} if is_strong else {})
        self._link.take(piece.end - start, self._is_over)
        if self._is_over.is_set():
            return
        with store_errors(f"{self._bucket}/{key}"):
            answer = obstore.get(self._store, key, options=options)
            # Not every server heeds If-Match.
            if object_file(file.relative_path, answer.meta) != file or answer.range != (start, piece.end):
                raise changed(f"{self._bucket}/{key}")
            for chunk in answer.stream(min_chunk_size=MIB):
                start += piece.part.write(piece.number, start, memoryview(chunk))
                if self._is_over.is_set():
                    return
        if start != piece.end:
            raise StoreUnavailable(f"The store ended its answer for '{key}' too early: try again.")


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is missing of one piece: the bytes from `start` to `end`."""

    part: "_Part"
    number: int
    start: int
    end: int


class _Part:
    """One object on its way."""

    def __init__(self, file: SourceFile, path: Path) -> None:
        self.file = file
        self.path = path
        self._journal_path = path.with_suffix(f".{_PIECE_BYTES}.{_boot()}.journal")
        if not path.exists() or path.stat().st_size != file.size_bytes:
            self._journal_path.unlink(missing_ok=True)
        self._data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def missing(self) -> list[_Piece]:
        """What has to be asked for. Room for all of it is taken now."""
        os.ftruncate(self._data, self.file.size_bytes)
        if self.file.size_bytes:
            os.posix_fallocate(self._data, 0, self.file.size_bytes)
        found = []
        for number, begin in enumerate(range(0, self.file.size_bytes, _PIECE_BYTES)):
            end = min(begin + _PIECE_BYTES, self.file.size_bytes)
            start = begin + self._arrived(number)
            if start < end:
                found.append(_Piece(self, number, start, end))
        return found

    def write(self, number: int, start: int, data: memoryview) -> int:
        """Put what arrived of a piece in its place, and then into the journal. How much that was."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._data, data[written:], start + written)
        os.pwrite(self._journal, _COUNT.pack(start + written - number * _PIECE_BYTES), number * _COUNT.size)
        return written

    def finish(self, target: Path) -> None:
        """All of it has arrived."""
        self.path.rename(target)
        self._journal_path.unlink()

    def discard(self) -> None:
        """None of it is to be trusted."""
        self.path.unlink()
        self._journal_path.unlink()

    def close(self) -> None:
        os.close(self._data)
        os.close(self._journal)

    def _arrived(self, number: int) -> int:
        known = os.pread(self._journal, _COUNT.size, number * _COUNT.size)
        return int(_COUNT.unpack(known)[0]) if len(known) == _COUNT.size else 0


@contextmanager
def _opened(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Two descriptors each, closed in the end whatever happens."""
    opened: list[_Part] = []
    try:
        for part in parts:
            opened.append(part)  # noqa: PERF402  # a list made at once would forget those before the one that fails
        yield opened
    finally:
        for part in opened:
            part.close()


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
