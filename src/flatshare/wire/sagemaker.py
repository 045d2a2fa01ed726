"""The SageMaker runtime's InvokeEndpoint: headers ⇄ data, and the errors that boto3 expects (sagemaker-runtime, rest-json)."""

import re
from dataclasses import dataclass
from functools import lru_cache

import orjson

from flatshare.core.errors import BadInput, FlatshareError, UnknownTarget
from flatshare.core.ids import ArtifactUri, EndpointName, TargetModel, VariantName
from flatshare.wire import faults
from flatshare.wire.http import Reply, Request

_PATH = re.compile(r"/endpoints/(?P<endpoint>[^/]+)/(?P<road>invocations|async-invocations|invocations-response-stream)")
_TARGET = re.compile(r"[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,1023}")
FORWARDED = (
    b"content-type",
    b"accept",
    b"x-amzn-sagemaker-custom-attributes",
    b"x-amzn-sagemaker-target-model",
    b"x-amzn-sagemaker-inference-id",
    b"x-flatshare-deadline-ms",
    b"x-amzn-sagemaker-session-id",
)
RETURNED = (b"x-amzn-sagemaker-custom-attributes", b"x-amzn-sagemaker-new-session-id", b"x-amzn-sagemaker-closed-session-id")
"""What the container may tell the caller."""
_MAX_CHARS = {b"x-amzn-sagemaker-custom-attributes": 1024, b"x-amzn-sagemaker-inference-id": 64, b"x-amzn-sagemaker-session-id": 256}
_STREAM_ROAD = "invocations-response-stream"
OTHER_ROADS = {
    "async-invocations": "is not an asynchronous endpoint: call InvokeEndpoint",
}
FOREIGN = {
    b"x-amzn-sagemaker-target-container-hostname": "has one container, so there is no TargetContainerHostname to choose. Leave it out.",
    b"x-amzn-sagemaker-inference-component": "has no inference components: leave InferenceComponentName out, and set TargetModel.",
    b"x-amzn-sagemaker-enable-explanations": "has no explainer: leave EnableExplanations out.",
}


@dataclass(frozen=True, slots=True)
class Invocation:
    """One InvokeEndpoint call."""

    endpoint: EndpointName
    target: TargetModel | None
    variant: VariantName | None
    request: Request
    is_streamed: bool = False
    """InvokeEndpointWithResponseStream: the answer goes as event-stream frames. TargetModel is our extension there."""

    @property
    def forwarded_headers(self) -> list[tuple[bytes, bytes]]:
        """What the container may see; AWS strips everything else."""
        headers = self.request.headers
        return [(name, headers[name]) for name in FORWARDED if name in headers]


def parse_invocation(request: Request) -> Invocation | None:
    """None if the path is not InvokeEndpoint's. Raises BadInput for a target model that is not a plain relative key."""
    path = _PATH.fullmatch(request.path)
    if path is None or request.method != "POST":
        return None
    if path["road"] in OTHER_ROADS:
        raise BadInput(f"Endpoint {path['endpoint']} {OTHER_ROADS[path['road']]}.")
    for header, limit in _MAX_CHARS.items():
        if len(request.headers.get(header, b"")) > limit:
            raise BadInput(f"{header.decode()} has more than {limit} characters")
    target = request.header("x-amzn-sagemaker-target-model")
    variant = request.header("x-amzn-sagemaker-target-variant")
    return Invocation(
        endpoint=EndpointName(path["endpoint"]),
        target=checked_target(_utf8(target)) if target else None,
        variant=VariantName(variant) if variant else None,
        request=request,
        is_streamed=path["road"] == _STREAM_ROAD,
    )


def refuse_foreign_headers(call: Invocation) -> None:
    """Raises BadInput if the call asks for a part of an endpoint that a multi-model endpoint has not."""
    for header, sentence in FOREIGN.items():
        if call.request.headers.get(header):
            raise BadInput(f"Endpoint {call.endpoint} {sentence}")


def artifact_uri(prefix: str, target: TargetModel) -> ArtifactUri:
    """The target model is a key below the prefix, which may or may not end in a slash."""
    return ArtifactUri(f"{prefix.rstrip('/')}/{target.strip('/')}")


def missing_target(request_id: str) -> BadInput:
    return BadInput(
        f"Request {request_id} is missing a target model header. Set TargetModel to the model's path below the endpoint's prefix."
    )


def error_reply(error: FlatshareError, request_id: str) -> Reply:
    """An error of our own making."""
    fault = faults.runtime_fault(error)
    reply = _fault_reply(fault.status, fault.code, {"Message": str(error), "ErrorCode": fault.code}, request_id)
    if fault.retry_after_s is not None:
        reply.headers.append((b"retry-after", b"%d" % fault.retry_after_s))
    return reply


def model_error_reply(status: int, message: str, place: "LogPlace", request_id: str) -> Reply:
    """The container answered 4xx or 5xx, or could not load the model: 424, with what it said."""
    side = "client" if status < 500 else "server"
    where = f"See {place.console_url} in account {place.account} for more information."
    text = f'Received {side} error ({status}) from primary with message "{message}". {where}'
    fields: dict[str, object] = {
        "Message": text,
        "ErrorCode": "CLIENT_ERROR_FROM_MODEL" if status < 500 else "INTERNAL_FAILURE_FROM_MODEL",
        "OriginalStatusCode": status,
        "OriginalMessage": message,
        "LogStreamArn": place.log_arn,
    }
    return _fault_reply(424, "ModelError", fields, request_id)


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where AWS would keep the container's log; the fields that its error texts name."""

    region: str
    account: str
    endpoint: EndpointName

    @property
    def console_url(self) -> str:
        return f"https://{self.region}.console.aws.amazon.com/cloudwatch/home?region={self.region}#logEventViewer:group=/aws/sagemaker/Endpoints/{self.endpoint}"

    @property
    def log_arn(self) -> str:
        return f"arn:aws:logs:{self.region}:{self.account}:log-group:/aws/sagemaker/Endpoints/{self.endpoint}"


def _fault_reply(status: int, code: str, fields: dict[str, object], request_id: str) -> Reply:
    headers = [(b"x-amzn-errortype", code.encode()), (b"x-amzn-requestid", request_id.encode())]
    return Reply(status, orjson.dumps(fields), headers=headers)


@lru_cache(maxsize=16_384)
def checked_target(target: str) -> TargetModel:
    """A plain key below a prefix. Raises BadInput or UnknownTarget for anything else."""
    if not _TARGET.fullmatch(target):
        raise BadInput("TargetModel must have 1 to 1024 printable characters and not begin with a space")
    if "://" in target or "\\" in target or any(part in {".", ".."} for part in target.split("/")) or not target.strip("/"):
        raise UnknownTarget(f"TargetModel '{target}' must be a plain path below the endpoint's prefix, without '..' and without a scheme")
    return TargetModel(target)


def _utf8(header: str) -> str:
    """Header text arrives byte by byte; clients send UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header
