"""Versions and aliases at a flatshare server: control calls of our own, signed as boto3 signs its calls."""

import getpass
import socket
from typing import Any, TypeVar

import boto3
import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session

from flatshare.client.aws import region_here
from flatshare.core import errors
from flatshare.core.errors import FlatshareError
from flatshare.core.release import Change, ChangeRequest, ModelReleases

T = TypeVar("T")
_ERRORS: dict[str, type[FlatshareError]] = {
    "ResourceNotFound": errors.UnknownTarget,
    "ConflictException": errors.ReleaseConflict,
    "SerializationException": errors.BadInput,
    "ServiceUnavailable": errors.Overloaded,
}


class _Listed(msgspec.Struct, rename="pascal"):
    releases: list[ModelReleases]


class ServerBook:
    """The release records that a flatshare server keeps."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/"
        self._session = URLLib3Session(timeout=70)
        self._credentials = _credentials()  # found once: looking takes boto3 15 ms; those that expire renew themselves
        self._region = region_here()

    def find(self, model: str) -> ModelReleases | None:
        """None if no version of the model was ever deployed."""
        try:
            return msgspec.json.decode(self._call("DescribeReleases", {"Model": model}), type=ModelReleases)
        except errors.UnknownTarget:
            return None

    def all(self) -> list[ModelReleases]:
        """Every model, without its history."""
        return msgspec.json.decode(self._call("ListReleases", {}), type=_Listed).releases

    def change(self, model: str, change: Change, *, why: str = "", kind: str = "", endpoint: str = "") -> ModelReleases:
        """What the record is afterwards. Raises ReleaseConflict, UnknownTarget or BadInput in the server's words."""
        request = ChangeRequest(model=model, change=change, why=why, who=whoami(), kind=kind, endpoint_name=endpoint)
        return msgspec.json.decode(self._call("ChangeRelease", msgspec.to_builtins(request)), type=ModelReleases)

    def close(self) -> None:
        self._session.close()

    def _call(self, operation: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"Flatshare.{operation}"}
        request = AWSRequest("POST", self._url, headers=headers, data=msgspec.json.encode(body))
        SigV4Auth(self._credentials, "sagemaker", self._region).add_auth(request)
        try:
            answer = self._session.send(request.prepare())
        except (NoConnection, HTTPClientError) as error:
            raise errors.InstanceGone(f"{error} Start a server with 'flatshare serve', or say with --url where it is.") from error
        if answer.status_code != 200:
            raise _refusal(answer.content, answer.status_code)
        return bytes(answer.content)


def whoami() -> str:
    """For the history, where calls are not authenticated."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _credentials() -> Any:
    return boto3.Session().get_credentials() or Credentials("flatshare", "flatshare")


def _refusal(content: bytes, status: int) -> FlatshareError:
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError:
        return errors.CallFailed(f"the server answered {status}: is it a flatshare server?")
    message = str(fields.get("message") or fields.get("Message") or status)
    return _ERRORS.get(str(fields.get("__type")), errors.CallFailed)(message)
