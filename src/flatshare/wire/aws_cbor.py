"""Ground floor: AWS's protocol rpc-v2-cbor. An operation is named by the path."""

import re
from typing import Any

from botocore.model import OperationModel, ServiceModel, Shape

from flatshare.wire import cbor
from flatshare.wire.aws_codec import ServiceFault, query_error_header
from flatshare.wire.aws_shapes import Params, render
from flatshare.wire.http import Reply, Request

_TYPE = b"application/cbor"
_PROTOCOL = b"rpc-v2-cbor"
_PATH = re.compile(r"/service/(?P<service>[A-Za-z0-9_.]+)/operation/(?P<operation>[A-Za-z0-9_]+)")


class CborNotation:
    """CBOR with timestamps under tag 1 and bytes as they are."""

    example = "POST /service/{prefix}/operation/<operation> with the header smithy-protocol: rpc-v2-cbor"

    def operation(self, service: ServiceModel, request: Request) -> str | None:
        path = _PATH.fullmatch(request.path)
        if path is None or request.headers.get(b"smithy-protocol") != _PROTOCOL:
            return None
        return path["operation"] if path["service"].rpartition(".")[2] == service.metadata["targetPrefix"] else None

    def data(self, shape: Shape, body: bytes) -> Any:  # noqa: ARG002  # CBOR says itself what is a list and what a number
        return cbor.loads(body) if body else {}

    def reply(self, operation: OperationModel, output: Params, request_id: str) -> Reply:
        shape = operation.output_shape
        body = b"" if shape is None else cbor.dumps(render(shape, output, moment=cbor.Epoch, blob=bytes))
        return _reply(200, body, request_id)

    def error(self, service: ServiceModel, fault: ServiceFault, request_id: str) -> Reply:
        reply = _reply(fault.status, cbor.dumps({"__type": fault.code, "message": fault.message}), request_id)
        reply.headers += query_error_header(service, fault)
        return reply


def _reply(status: int, body: bytes, request_id: str) -> Reply:
    headers = [(b"smithy-protocol", _PROTOCOL), (b"x-amzn-requestid", request_id.encode())]
    return Reply(status, body, _TYPE, headers)
