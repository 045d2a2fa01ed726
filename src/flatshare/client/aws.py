"""The AWS clients of a flatshare server: plain boto3, with nothing changed but the endpoint address."""

import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

SERVICES = {
    "sagemaker": "AWS_ENDPOINT_URL_SAGEMAKER",
    "sagemaker-runtime": "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",
    "application-autoscaling": "AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING",
    "cloudwatch": "AWS_ENDPOINT_URL_CLOUDWATCH",
}


def aws_client(service: str, url: str, *, region: str | None = None, connections: int = 10) -> Any:
    """A boto3 client for the server at `url`, in the region that AWS clients here use.

    Without AWS credentials in the environment it signs with a placeholder, which a server that asks for authentication refuses.
    """
    credentials: dict[str, Any] = {}
    if not os.environ.get("AWS_ACCESS_KEY_ID") and boto3.Session().get_credentials() is None:
        credentials = {"aws_access_key_id": "flatshare", "aws_secret_access_key": "flatshare"}
    # 70 s: the server holds a cold request for 60. Legacy retries, since the standard mode does not retry ModelNotReadyException.
    config = Config(read_timeout=70, retries={"mode": "legacy", "max_attempts": 3}, max_pool_connections=connections)
    return boto3.client(service, endpoint_url=url, region_name=region or region_here(), config=config, **credentials)


def region_here() -> str:
    """What environment and profile say; a signature names its region."""
    return boto3.Session().region_name or "us-east-1"


def sentence_of(error: Exception) -> str:
    """What a person at a terminal needs to know of an error of boto3: the model's or the server's own words."""
    if isinstance(error, ClientError):
        response: dict[str, Any] = dict(error.response)
        said = str(response.get("OriginalMessage") or response["Error"]["Message"])
        if response["Error"]["Code"] in {"MissingAuthenticationToken", "UnrecognizedClientException"}:
            return f"{said} Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that 'flatshare keys create' made on the server."
        return said
    if isinstance(error, EndpointConnectionError | ConnectionClosedError):
        return f"{error} Start a server with 'flatshare serve', or say with --url where it is."
    return str(error)


def environment(url: str) -> dict[str, str]:
    """The variables with which AWS clients reach this server, while S3 and STS keep their own addresses."""
    return dict.fromkeys(SERVICES.values(), url)
