"""Which code an operator has published: digests in one file, the only code versions that run where the server asks for it.

Whoever may write the file decides what runs, so one that others may write is refused. Changes count within a second.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flatshare.core.errors import BadInput, UnpublishedCode
from flatshare.core.ids import Digest
from flatshare.telemetry.log import get_logger

log = get_logger("code")
_LOOK_EVERY_S = 1.0
_DIGEST_CHARS = 64


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One code version that may run."""

    digest: Digest
    note: str
    """What it is, in the operator's words or by its place."""
    published_s: float


Publications = dict[Digest, Publication]


class PublishedFile:
    """The file, for whoever publishes and revokes. Writers take turns; a reader sees the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Publications:
        """Empty if there is no file. Raises BadInput for one that others may write, or that is not of this form."""
        try:
            with self.path.open("rb") as file:
                _require_own(self.path, os.fstat(file.fileno()))
                listed = msgspec.json.decode(file.read(), type=list[Publication])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise BadInput(f"{self.path} is not a list of published code: {error}. Move it away, and publish anew") from error
        return {publication.digest: publication for publication in listed}

    def publish(self, digest: str, note: str, now_s: float) -> Publication:
        """Once more changes its note. Raises BadInput for what is no digest."""
        publication = Publication(_checked(digest), note, now_s)
        with self._changed() as publications:
            publications[publication.digest] = publication
        return publication

    def revoke(self, digest: str) -> Publication:
        """Raises UnpublishedCode if it is not published."""
        with self._changed() as publications:
            if Digest(digest) not in publications:
                raise UnpublishedCode(f"no code of digest {digest} is published: see 'flatshare code published'")
            return publications.pop(Digest(digest))

    @contextmanager
    def _changed(self) -> Iterator[Publications]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            publications = self.read()
            yield publications
            fresh = self.path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(list(publications.values()))))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)


class PublishedCode:
    """The file as an instance knows it."""

    def __init__(self, path: Path) -> None:
        self._file = PublishedFile(path)
        self._mark: tuple[int, ...] | None = None
        self._publications: Publications = {}
        self._looked_s = 0.0

    def require(self, digest: Digest, model: str) -> None:
        """Raises UnpublishedCode, with what an operator has to do if the code is to run."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_EVERY_S or digest not in self._publications:  # who has just published does not wait
            self._looked_s = now_s
            self._look()
        if digest not in self._publications:
            raise UnpublishedCode(
                f"model '{model}' brings code with the digest {digest}, which no operator of this server has published: "
                f"whoever has read it and trusts it runs 'flatshare code publish {digest}' where the server runs"
            )

    def _look(self) -> None:
        """A stat costs two microseconds."""
        mark = _mark(self._file.path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._publications = self._file.read()
        except (BadInput, OSError) as error:
            self._publications = {}
            log.error("published_code_unreadable", path=str(self._file.path), reason=str(error), consequence="no code of models runs")


def _mark(path: Path) -> tuple[int, ...] | None:
    """Another file, or another content, has another one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid)


def _require_own(path: Path, found: os.stat_result) -> None:
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid not in {0, os.geteuid()}:
        raise BadInput(f"{path} may be written by others, who could publish code with it: chown it to this user and chmod it to 644")


def _checked(digest: str) -> Digest:
    if len(digest) != _DIGEST_CHARS or not all(letter in "0123456789abcdef" for letter in digest):
        raise BadInput(f"'{digest}' is no digest: it has {_DIGEST_CHARS} hexadecimal digits, as the refusal of a model shows them")
    return Digest(digest)
