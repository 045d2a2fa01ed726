"""Clients of object stores: one per bucket, with the environment's credentials and endpoint, bounded in time."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import cast

from obstore.exceptions import BaseError
from obstore.store import ObjectStoreMethods, from_url

from flatshare.core.errors import UnknownTarget

_CLIENT = {"connect_timeout": timedelta(seconds=3), "read_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=120)}
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=10), "backoff": _BACKOFF}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Where a store of one's own is named. Plain HTTP is spoken only with one that is named so."""


def open_store(base: str) -> ObjectStoreMethods:
    """The store of `s3://bucket`, `gs://bucket` or `az://container`, by what the environment says of it now. Raises UnknownTarget."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_", "AZURE_"))))
    try:
        return _store(base, environment)
    except (BaseError, ValueError) as error:
        raise UnknownTarget(f"The store of '{base}' cannot be used ({reason_of(error)}): check its credentials.") from error


@lru_cache(maxsize=64)
def _store(base: str, environment: tuple[tuple[str, str], ...]) -> ObjectStoreMethods:
    """One client per bucket keeps its connections open; a changed environment opens a new one. (Building one takes 40 ms.)"""
    variables = dict(environment)
    endpoint = next((variables[name] for name in _ENDPOINTS[base.partition("://")[0]] if variables.get(name)), None)
    client = _CLIENT | {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    if not base.startswith("s3://"):
        return from_url(base, client_options=client, retry_config=_RETRIES)  # it reads the environment itself
    config = {"region": variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
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


def reason_of(error: Exception) -> str:
    """The cause in a few words. What obstore puts before it is the request's URL, which may be signed."""
    line = str(error).partition("\n")[0]
    return (line.partition(" - ")[2] or line)[:200]
