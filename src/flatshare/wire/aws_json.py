"""Ground floor: the AWS JSON protocol on the server's side, driven by the models that boto3's client side is driven by."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
from botocore.loaders import Loader
from botocore.model import ServiceModel

from flatshare.core.errors import UnknownOperation, ValidationFailed
from flatshare.wire import json_body
from flatshare.wire.aws_shapes import Dialect, Params, Reader, render
from flatshare.wire.http import Reply, Request

_HOSTING_DIALECT = Dialect(
    # The other stores that we read from; a file has no bucket, hence three slashes.
    patterns={"ContainerDefinition.ModelDataUrl": r"(https|s3|gs|az)://([^/]+)/?(.*)|file:///.*"},
    enum_prefixes={"ProductionVariantInstanceType": "ml.local"},
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a JSON service."""

    operation: str
    params: Params


class JsonCodec:
    """One service: HTTP requests to calls, results to HTTP replies."""

    def __init__(self, service: ServiceModel, dialect: Dialect) -> None:
        self._service = service
        self._dialect = dialect
        self._content_type = _content_type(service.metadata["jsonVersion"])

    def call(self, request: Request, *, served: Collection[str]) -> Call:
        """What the request asks for. Raises UnknownOperation, BadInput (unreadable) or ValidationFailed (breaks a rule)."""
        operation = self._operation(request, served)
        shape = self._service.operation_model(operation).input_shape
        body = _parsed(request.body)
        if shape is None:
            return Call(operation, {})
        reader = Reader(self._dialect)
        params = reader.read(shape, body)
        if reader.problems:
            raise ValidationFailed(_validation_message(reader.problems))
        return Call(operation, params)

    def reply(self, operation: str, output: Params, *, request_id: str) -> Reply:
        shape = self._service.operation_model(operation).output_shape
        body = b"" if shape is None else orjson.dumps(render(shape, output))
        return Reply(200, body, self._content_type, [(b"x-amzn-requestid", request_id.encode())])

    def _operation(self, request: Request, served: Collection[str]) -> str:
        prefix, _, operation = request.header("x-amz-target").partition(".")
        if request.method != "POST" or prefix != self._service.metadata["targetPrefix"] or not operation:
            raise UnknownOperation(
                f"POST with the header X-Amz-Target: {self._service.metadata['targetPrefix']}.<operation> is served here"
            )
        if operation not in served:
            raise UnknownOperation(f"the operation {operation} is not served here; these are: {', '.join(served)}")
        return operation


def error_reply(status: int, code: str, message: str, *, request_id: str, json_version: str = "1.1") -> Reply:
    """An error as every AWS JSON service renders it."""
    headers = [(b"x-amzn-requestid", request_id.encode()), (b"x-amzn-errortype", code.encode())]
    return Reply(status, orjson.dumps({"__type": code, "message": message}), _content_type(json_version), headers)


@cache
def sagemaker_codec() -> JsonCodec:
    """The hosting API's codec. Reading its model of 425 operations takes a third of a second: call it off the loop first."""
    return load_codec("sagemaker", _HOSTING_DIALECT)


def load_codec(service_name: str, dialect: Dialect) -> JsonCodec:
    return JsonCodec(ServiceModel(Loader().load_service_model(service_name, "service-2"), service_name), dialect)


def _parsed(body: bytes) -> Any:
    return json_body.parsed(body) if body else {}


def _validation_message(problems: list[str]) -> str:
    count = "1 validation error" if len(problems) == 1 else f"{len(problems)} validation errors"
    return f"{count} detected: {'; '.join(problems)}"


def _content_type(json_version: str) -> bytes:
    return f"application/x-amz-json-{json_version}".encode()
