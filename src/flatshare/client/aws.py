"""The AWS clients of a flatshare server: plain boto3, with nothing changed but the endpoint address."""

import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from flatshare.core.access import AccessKey

SERVICES = {
    "sagemaker": "AWS_ENDPOINT_URL_SAGEMAKER",
    "sagemaker-runtime": "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",
    "application-autoscaling": "AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING",
    "cloudwatch": "AWS_ENDPOINT_URL_CLOUDWATCH",
}
CONNECTIONS = 32
"""Of a client for inference: so many calls at a time need not wait for each other."""


def aws_client(service: str, url: str, *, region: str | None = None, connections: int = 10, key: AccessKey | None = None) -> Any:
    """A boto3 client for the server at `url`, in the region that AWS clients here use.

    It signs with `key`, or with the AWS credentials of the environment; without any, with a placeholder, which a server that asks for
    authentication refuses.
    """
    credentials = _placeholder_credentials()
    if key is not None:
        credentials = {"aws_access_key_id": key.principal.key_id, "aws_secret_access_key": key.secret}
    # 70 s: the server holds a cold request for 60. Legacy retries, since the standard mode does not retry ModelNotReadyException.
    config = Config(read_timeout=70, retries={"mode": "legacy", "max_attempts": 3}, max_pool_connections=connections)
    return boto3.client(service, endpoint_url=url, region_name=region or region_here(), config=config, **credentials)


def region_here() -> str:
    """What environment and profile say; a signature names its region."""
    return boto3.Session().region_name or "us-east-1"


def runtime_client(url: str | None, *, region: str | None = None) -> Any:
    """A client for inference whose caller has a retry loop of its own, so boto3 makes one attempt. No url is AWS itself."""
    config = Config(read_timeout=70, retries={"mode": "standard", "total_max_attempts": 1}, max_pool_connections=CONNECTIONS)
    credentials = _placeholder_credentials() if url is not None else {}
    return boto3.client("sagemaker-runtime", endpoint_url=url, region_name=region or region_here(), config=config, **credentials)


def _placeholder_credentials() -> dict[str, Any]:
    if os.environ.get("AWS_ACCESS_KEY_ID") or boto3.Session().get_credentials() is not None:
        return {}
    return {"aws_access_key_id": "flatshare", "aws_secret_access_key": "flatshare"}


def sentence_of(error: Exception) -> str:
    """What a person at a terminal needs to know of an error of boto3: the model's or the server's own words."""
    if isinstance(error, ClientError):
        response: dict[str, Any] = dict(error.response)
        said = str(response.get("OriginalMessage") or response["Error"]["Message"])
        return with_remedy(said, response["Error"]["Code"])
    if isinstance(error, EndpointConnectionError | ConnectionClosedError):
        return f"{error} Start a server with 'flatshare serve', or say with --url where it is."
    return str(error)


def with_remedy(said: str, code: str) -> str:
    """What a server said, and what to do if it does not know who calls."""
    if code not in {"MissingAuthenticationToken", "UnrecognizedClientException"}:
        return said
    return f"{said}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that 'flatshare keys create' made on the server"


def environment(url: str) -> dict[str, str]:
    """The variables with which AWS clients reach this server, while S3 and STS keep their own addresses."""
    return dict.fromkeys(SERVICES.values(), url)
