"""Ground floor: AWS's protocols on the server's side, all driven by the service models that boto3's client side is driven by.

A `Codec` is one service in one notation. It reads a request into a checked `Call` and writes results and errors; what differs
between the protocols (how an operation is named, how values are written) is its `Notation`: `aws_json`, `aws_query`, `aws_cbor`.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from botocore.model import OperationModel, ServiceModel, Shape

from flatshare.core.errors import BadInput, UnknownOperation, ValidationFailed
from flatshare.wire.aws_shapes import Dialect, Params, Reader
from flatshare.wire.http import Reply, Request

_MAX_BODY_BYTES = 8 << 20  # of a compressed body; PutMetricData's own limit is 1 MB


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a service."""

    operation: str
    params: Params


@dataclass(frozen=True, slots=True)
class ServiceFault:
    """An error as a service tells it. `code` is the name of one of the service's exceptions, or a code that all services have."""

    status: int
    code: str
    message: str
    query_code: str
    """What the service called it in the days of its query protocol; otherwise the code again."""

    @property
    def side(self) -> str:
        """Whose fault it is."""
        return "Sender" if self.status < 500 else "Receiver"


class Notation(Protocol):
    """How one protocol writes what the model says."""

    example: str
    """How a call of it looks, for the error's sentence."""

    def operation(self, service: ServiceModel, request: Request) -> str | None:
        """The operation that the request names; None if it is not a request of this protocol to this service."""

    def data(self, shape: Shape, body: bytes) -> Any:
        """The body as plain data: maps, lists, texts, numbers. Raises BadInput."""

    def reply(self, operation: OperationModel, output: Params, request_id: str) -> Reply: ...

    def error(self, service: ServiceModel, fault: ServiceFault, request_id: str) -> Reply: ...


class Codec:
    """One service in one notation: HTTP requests to calls, results and errors to HTTP replies."""

    def __init__(self, service: ServiceModel, notation: Notation, dialect: Dialect) -> None:
        self._service = service
        self._notation = notation
        self._dialect = dialect

    def call(self, request: Request, *, served: Collection[str]) -> Call:
        """What the request asks for. Raises UnknownOperation, BadInput (unreadable) or ValidationFailed (breaks a rule)."""
        operation = self._operation(request, served)
        shape = self._service.operation_model(operation).input_shape
        if shape is None:
            return Call(operation, {})
        data = self._notation.data(shape, _plain(request))
        reader = Reader(self._dialect)
        params = reader.read(shape, data)
        if reader.problems:
            raise ValidationFailed(_validation_message(reader.problems))
        return Call(operation, params)

    def reply(self, operation: str, output: Params, *, request_id: str) -> Reply:
        return self._notation.reply(self._service.operation_model(operation), output, request_id)

    def error(self, status: int, code: str, message: str, *, request_id: str) -> Reply:
        """`code` may be one that the service has in common with all, such as ValidationException, or one of its own."""
        fault = ServiceFault(status, code, message, _query_code(self._service, code))
        return self._notation.error(self._service, fault, request_id)

    def _operation(self, request: Request, served: Collection[str]) -> str:
        operation = self._notation.operation(self._service, request) if request.method == "POST" else None
        if not operation:
            example = self._notation.example.format(prefix=self._service.metadata.get("targetPrefix", ""))
            raise UnknownOperation(f"{example} is served here")
        if operation not in served:
            raise UnknownOperation(f"the operation {operation} is not served here; these are: {', '.join(served)}")
        return operation


def query_error_header(service: ServiceModel, fault: ServiceFault) -> list[tuple[bytes, bytes]]:
    """Services that once spoke the query protocol tell clients the code of that time, which is what old code catches."""
    if not service.is_query_compatible:
        return []
    return [(b"x-amzn-query-error", f"{fault.query_code};{fault.side}".encode())]


def _query_code(service: ServiceModel, code: str) -> str:
    if code not in service.shape_names:
        return code
    error: Mapping[str, Any] = service.shape_for(code).metadata.get("error", {})
    return str(error.get("code", code))


def _plain(request: Request) -> bytes:
    """The body as it was before the client compressed it: boto3 does that with PutMetricData from 10 KB on."""
    encoding = request.header("content-encoding").lower()
    if encoding in {"", "identity", "aws-chunked"}:
        return request.body
    if encoding != "gzip":
        raise BadInput(f"a body in Content-Encoding {encoding} cannot be read: send it plain or as gzip")
    inflater = zlib.decompressobj(wbits=31)
    try:
        body = inflater.decompress(request.body, _MAX_BODY_BYTES)
    except zlib.error as error:
        raise BadInput(f"the body is not gzip: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise BadInput(f"the body is cut off, or larger than {_MAX_BODY_BYTES} bytes when decompressed: send less in a call")
    return body


def _validation_message(problems: list[str]) -> str:
    count = "1 validation error" if len(problems) == 1 else f"{len(problems)} validation errors"
    return f"{count} detected: {'; '.join(problems)}"
