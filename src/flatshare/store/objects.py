"""Objects of a store as this package sees them, and the store's errors told apart."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from flatshare.core.errors import StoreUnavailable, UnknownTarget
from flatshare.store.remote import reason_of

_STATUS = re.compile(r"status code: (\d{3})")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of an artifact: its path below the artifact ("" if it is the artifact), and what changes with its content."""

    relative_path: str
    size_bytes: int
    version: str


def object_file(path: str, meta: "obstore.ObjectMeta") -> SourceFile:
    tag = meta["e_tag"]
    if tag and not tag.startswith(('"', "W/")):
        tag = f'"{tag}"'  # some servers leave the quotes out in lists, and only there
    return SourceFile(path, meta["size"], tag or meta["last_modified"].isoformat())


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Tell apart what is missing, what is denied and what is out of reach."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(uri) from error
    except PreconditionError as error:
        raise changed(uri) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise denied(uri) from error
    except (BaseError, ValueError) as error:
        # What a list met: obstore gives all of it one type, and the status in the text.
        reason = reason_of(error)
        status = _STATUS.search(reason)
        if status and status[1] in {"401", "403"}:
            raise denied(uri) from error
        if status and status[1] == "404":
            raise missing(uri) from error
        raise StoreUnavailable(f"The store of '{uri}' does not answer as it should ({reason}): try again.") from error


def missing(uri: str) -> UnknownTarget:
    return UnknownTarget(f"Nothing lies at '{uri}': upload a model's folder or archive there, or correct the target model.")


def changed(uri: str) -> StoreUnavailable:
    return StoreUnavailable(f"'{uri}' changed while it was read: try again, and upload a new model under a new name.")


def denied(uri: str) -> UnknownTarget:
    return UnknownTarget(f"'{uri}' may not be read: check the credentials, and that they permit to list and get objects there.")
