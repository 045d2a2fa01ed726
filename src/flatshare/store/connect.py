"""Connections to the stores that URIs name, and what their errors mean."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import cast

from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import ObjectStoreMethods, from_url

from flatshare.core.errors import StoreUnavailable, UnknownTarget

_CLIENT = {"connect_timeout": timedelta(seconds=3), "read_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=120)}
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=10), "backoff": _BACKOFF}
_STATUS = re.compile(r"status code: (\d{3})")


def open_store(base: str, uri: str) -> ObjectStoreMethods:
    """The store at `base` (scheme and bucket), of which `uri` is wanted. Raises UnknownTarget if it cannot be used."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_", "AZURE_"))))
    try:
        return _store(base, environment)
    except (BaseError, ValueError) as error:
        raise UnknownTarget(f"The store of '{uri}' cannot be used ({reason(error)}): check its credentials.") from error


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
        said = reason(error)
        status = _STATUS.search(said)
        if status and status[1] in {"401", "403"}:
            raise denied(uri) from error
        if status and status[1] == "404":
            raise missing(uri) from error
        raise StoreUnavailable(f"The store of '{uri}' does not answer as it should ({said}): try again.") from error


def reason(error: Exception) -> str:
    """The cause in a few words. What obstore puts before it is the request's URL, which may be signed."""
    line = str(error).partition("\n")[0]
    return (line.partition(" - ")[2] or line)[:200]


def denied(uri: str) -> UnknownTarget:
    return UnknownTarget(f"'{uri}' may not be read: check the credentials, and that they permit to list and get objects there.")


def missing(uri: str) -> UnknownTarget:
    return UnknownTarget(f"Nothing lies at '{uri}': upload a model's folder or archive there, or correct the target model.")


def changed(uri: str) -> StoreUnavailable:
    return StoreUnavailable(f"'{uri}' changed while it was read: try again, and upload a new model under a new name.")


@lru_cache(maxsize=64)
def _store(base: str, environment: tuple[tuple[str, str], ...]) -> ObjectStoreMethods:
    """One client per bucket keeps its connections open; a changed environment opens a new one. (Building one takes 40 ms.)"""
    variables = dict(environment)
    if not base.startswith("s3://"):
        return from_url(base, client_options=_CLIENT, retry_config=_RETRIES)
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    config = {"region": variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    client = _CLIENT | {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    has_static_keys = "AWS_ACCESS_KEY_ID" in variables and "AWS_SECRET_ACCESS_KEY" in variables
    credentials = {} if has_static_keys else {"credential_provider": _boto3_credentials()}
    return from_url(base, config=config, client_options=client, retry_config=_RETRIES, **credentials)


def _boto3_credentials() -> "Callable[[], object]":
    # Imported here because boto3 takes a third of a second, and a machine with keys in its environment needs none of it.
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    try:
        return cast("Callable[[], object]", Boto3CredentialProvider())
    except BotoCoreError as error:  # such as a profile that does not exist
        raise ValueError(str(error)) from error
