"""Requests as the server sees them, made from their bytes or by botocore's own signer."""

from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from flatshare.wire.http import Request

KEY_ID, SECRET = "FSKATESTTESTTESTTEST", "a-secret-of-forty-characters-aaaaaaaaaaaa"
HOST = "flatshare.test:8080"


def from_text(text: str) -> Request:
    """A request as it stands in AWS's test suite: header lines may be repeated, and folded."""
    head, _, body = text.encode().partition(b"\n\n")
    first, *lines = head.replace(b"\n ", b" ").split(b"\n")
    method, rest = first.split(b" ", 1)
    path, _, query = rest.rsplit(b" ", 1)[0].partition(b"?")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, value = line.lower().partition(b":")[0], line.partition(b":")[2].strip()
        headers[name] = headers[name] + b"," + value if name in headers else value
    return Request(method.decode(), path.decode("utf-8", "replace"), headers, body, query, path)


def signed(
    method: str = "POST",
    path: str = "/",
    body: bytes = b"",
    *,
    key: tuple[str, str] = (KEY_ID, SECRET),
    region: str = "us-east-1",
    service: str = "sagemaker",
    expires_s: int | None = None,
    token: str | None = None,
    **headers: str,
) -> Request:
    """What arrives when botocore has signed this. Names of headers are written with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()} | {"Host": HOST}
    request = AWSRequest(method, f"http://{HOST}{path}", headers=named, data=body)
    credentials = Credentials(*key, token)
    signer: Any = SigV4Auth(credentials, service, region)
    if expires_s is not None:
        signer = SigV4QueryAuth(credentials, service, region, expires=expires_s)
    signer.add_auth(request)
    return arriving(method, str(request.url), dict(request.headers.items()), body)


def arriving(method: str, url: str, headers: dict[str, str], body: bytes) -> Request:
    parts = urlsplit(url)
    lower = {name.lower().encode(): value.encode() for name, value in headers.items()}
    return Request(method, parts.path, lower, body, parts.query.encode(), parts.path.encode(), "192.0.2.7", "request-1")
