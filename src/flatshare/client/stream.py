"""InvokeEndpointWithResponseStream through boto3, with a target model: AWS's call has no such member, so its header is added."""

from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import Any

import orjson

_CALL = "before-call.sagemaker-runtime.InvokeEndpointWithResponseStream"  # before it is signed
_target: ContextVar[str] = ContextVar("target")


def invoke_with_response_stream(
    runtime: Any, endpoint: str, target: str, body: bytes, content_type: str = "application/json"
) -> Generator[bytes, None, None]:
    """The model's answer part by part. Raises botocore's errors, EventStreamError in the middle. Close it, or read it to its end."""
    runtime.meta.events.register(_CALL, _add_target, unique_id="flatshare-target-model")
    token = _target.set(target)
    try:
        reply = runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, ContentType=content_type, Body=body)
    finally:
        _target.reset(token)
    return _payloads(reply["Body"])


def lines_of(parts: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a generating model's answer: texts as they come, and at last what they became. A part may end anywhere."""
    held = b""
    for part in parts:
        *lines, held = (held + part).split(b"\n")
        yield from (orjson.loads(line) for line in lines if line)


def _payloads(body: Any) -> Generator[bytes, None, None]:
    try:
        for event in body:
            if "PayloadPart" in event:
                yield event["PayloadPart"]["Bytes"]
    finally:
        body.close()


def _add_target(params: dict[str, Any], **_: Any) -> None:
    target = _target.get("")
    if target:
        params["headers"]["X-Amzn-SageMaker-Target-Model"] = target
