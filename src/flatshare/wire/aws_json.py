"""Ground floor: the AWS JSON protocols 1.0 and 1.1. An operation is named by the header X-Amz-Target."""

from functools import cache
from typing import Any

import orjson
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape

from flatshare.wire import json_body
from flatshare.wire.aws_codec import Codec, ServiceFault, query_error_header
from flatshare.wire.aws_shapes import Dialect, Params, render
from flatshare.wire.http import Reply, Request

_HOSTING_DIALECT = Dialect(
    # The other stores that we read from; a file has no bucket, hence three slashes.
    patterns={"ContainerDefinition.ModelDataUrl": r"(https|s3|gs|az)://([^/]+)/?(.*)|file:///.*"},
    enum_prefixes={"ProductionVariantInstanceType": "ml.local"},
)


class JsonNotation:
    """JSON with timestamps as seconds and bytes in base64."""

    example = "POST with the header X-Amz-Target: {prefix}.<operation>"

    def __init__(self, version: str) -> None:
        self._version = version

    def operation(self, service: ServiceModel, request: Request) -> str | None:
        prefix, _, operation = request.header("x-amz-target").partition(".")
        return operation if prefix == service.metadata["targetPrefix"] else None

    def data(self, shape: Shape, body: bytes) -> Any:  # noqa: ARG002  # JSON says itself what is a list and what a number
        return json_body.parsed(body) if body else {}

    def reply(self, operation: OperationModel, output: Params, request_id: str) -> Reply:
        shape = operation.output_shape
        body = b"" if shape is None else orjson.dumps(render(shape, output))
        return Reply(200, body, _content_type(self._version), [(b"x-amzn-requestid", request_id.encode())])

    def error(self, service: ServiceModel, fault: ServiceFault, request_id: str) -> Reply:
        reply = error_reply(fault.status, fault.code, fault.message, request_id=request_id, json_version=self._version)
        reply.headers += query_error_header(service, fault)
        return reply


def error_reply(status: int, code: str, message: str, *, request_id: str, json_version: str = "1.1") -> Reply:
    """An error as every AWS JSON service renders it."""
    headers = [(b"x-amzn-requestid", request_id.encode()), (b"x-amzn-errortype", code.encode())]
    return Reply(status, orjson.dumps({"__type": code, "message": message}), _content_type(json_version), headers)


@cache
def sagemaker_codec() -> Codec:
    """The hosting API's codec. Reading its model of 425 operations takes a third of a second: call it off the loop first."""
    return load_codec("sagemaker", _HOSTING_DIALECT)


def load_codec(service_name: str, dialect: Dialect) -> Codec:
    service = load_service(service_name)
    return Codec(service, JsonNotation(service.metadata["jsonVersion"]), dialect)


@cache
def load_service(name: str) -> ServiceModel:
    """Botocore's model of a service, by the name that boto3 knows it under."""
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def _content_type(json_version: str) -> bytes:
    return f"application/x-amz-json-{json_version}".encode()
