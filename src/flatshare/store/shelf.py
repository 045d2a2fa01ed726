"""Putting things into a store: packages' artifacts, versions of inference code, release records. Every put is whole or has not happened.

S3 and its like show an object only once it is complete; on a disk it is written beside its place and renamed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStoreMethods

from flatshare.core.errors import BadInput, DiskFull, StoreUnavailable, UnknownTarget
from flatshare.store.remote import open_store, reason_of

_NO_ROOM = ("No space left", "Disk quota exceeded", "File too large")  # the last of a process whose files may not grow (ulimit -f)

_DENIED = ("Permission denied", "status code: 401", "status code: 403")  # what a list met has no type of its own


@dataclass(frozen=True, slots=True)
class Object:
    """What lies under a key, and the tag that changes with it."""

    data: bytes
    tag: str


class Shelf:
    """Everything below one URI. Used from one thread at a time, or from several."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") + "/"
        scheme, separator, path = self.uri.partition("://")
        if not separator or scheme not in {"file", "s3", "gs", "az"}:
            raise BadInput(f"'{uri}' names no store that can be written to: use s3://, gs://, az:// or file:///")
        self._is_local = scheme == "file"
        self._prefix = "" if self._is_local else path.partition("/")[2]
        self._store = _local_store(Path(path)) if self._is_local else open_store(f"{scheme}://{path.partition('/')[0]}")

    def put(self, key: str, data: bytes | Path) -> None:
        """Put bytes or a file, in the place of what was there. Raises UnknownTarget (denied), DiskFull or StoreUnavailable."""
        with self._errors(key):
            obstore.put(self._store, self._prefix + key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Put bytes unless something is there: False then."""
        try:
            with self._errors(key):
                obstore.put(self._store, self._prefix + key, data, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        return True

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Put bytes in the place of what had this tag; False if it has changed since. Not on a disk, which has no such call."""
        try:
            with self._errors(key):
                obstore.put(self._store, self._prefix + key, data, mode={"e_tag": tag}, use_multipart=False)
        except FileExistsError:
            return False
        return True

    def get(self, key: str) -> Object | None:
        """None if nothing lies there."""
        try:
            with self._errors(key):
                answer = obstore.get(self._store, self._prefix + key)
                return Object(bytes(answer.bytes()), answer.meta["e_tag"] or "")
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        """In bytes; None if nothing lies there."""
        try:
            with self._errors(key):
                return int(obstore.head(self._store, self._prefix + key)["size"])
        except FileNotFoundError:
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Size in bytes of every object whose key begins with `prefix`, a folder."""
        with self._errors(prefix):
            found = [meta for batch in obstore.list(self._store, self._prefix + prefix) for meta in batch]
        return {meta["path"].removeprefix(self._prefix): meta["size"] for meta in found}

    def remove(self, keys: list[str]) -> None:
        """What is gone already is no error."""
        for key in keys:
            try:
                with self._errors(key):
                    obstore.delete(self._store, self._prefix + key)
            except FileNotFoundError:
                pass

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        uri = self.uri + key
        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(uri) from error
        except FileNotFoundError:
            raise
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise _denied(uri) from error
        except (BaseError, OSError) as error:
            said = f"{reason_of(error)} {error}"
            if any(words in said for words in _NO_ROOM):
                raise DiskFull(f"there is no room for '{uri}': free some, nothing was changed") from error
            if any(words in said for words in _DENIED):
                raise _denied(uri) from error
            raise StoreUnavailable(
                f"'{uri}' does not answer as it should ({reason_of(error)}): try again, what has arrived is not sent anew"
            ) from error


def _local_store(folder: Path) -> ObjectStoreMethods:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnknownTarget(f"'{folder}' cannot be made ({error.strerror}): choose another place, or mend its permissions") from error
    return LocalStore(folder, automatic_cleanup=True)


def _denied(uri: str) -> UnknownTarget:
    return UnknownTarget(f"'{uri}' may not be read or written: check the credentials or the folder's permissions")
