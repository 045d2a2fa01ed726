"""The server's own pages, read with the credentials that AWS clients would use here: signed if there are any."""

import os
import ssl
import urllib.error
import urllib.request
from typing import Any

import boto3
import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError

from flatshare.client.aws import region_here, with_remedy
from flatshare.core.errors import AccessDenied, BadInput

_TIMEOUT_S = 5.0


def read_json(url: str, path: str) -> dict[str, Any]:
    """What lies at `path`. Raises AccessDenied in the server's words, OSError if nobody answers, BadInput for no JSON."""
    request = urllib.request.Request(f"{url}{path}", headers=_signed(f"{url}{path}"))  # noqa: S310  # the operator's own address
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=_trust(url)) as answer:  # noqa: S310
            return _parsed(answer.read(), url)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 403:
                raise
            said = str(_parsed(error.read(), url).get("Message", error.reason))
            raise AccessDenied(with_remedy(said, error.headers.get("x-amzn-errortype", ""))) from None


def _signed(url: str) -> dict[str, str]:
    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:  # such as a profile that does not exist
        raise BadInput(str(error)) from error
    if credentials is None:
        return {}
    request = AWSRequest("GET", url)
    SigV4Auth(credentials.get_frozen_credentials(), "sagemaker", region_here()).add_auth(request)
    return dict(request.headers.items())


def _trust(url: str) -> ssl.SSLContext | None:
    """The certificates that AWS clients here trust, too."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")) if url.startswith("https://") else None


def _parsed(content: bytes, url: str) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{url} answers, but not as flatshare does: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{url} answers, but not as flatshare does")
    return value
