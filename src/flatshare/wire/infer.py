"""An inference's body in whatever form it comes ⇄ a call; its answer goes in the same form.

text/plain                                                        one text
application/json                                                  {"inputs": …}, {"query": …, "passages": …}, or a v2 request
application/vnd.sagemaker-triton.binary+json;json-header-size=N   a v2 request with binary tensors behind N bytes of JSON
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.wire import json_body, texts, v2
from flatshare.wire.http import JSON

BINARY_TYPE = "application/vnd.sagemaker-triton.binary+json"
_HEADER_SIZE = re.compile(rf"{re.escape(BINARY_TYPE)}\s*;\s*json-header-size\s*=\s*(\d{{1,9}})")


@dataclass(frozen=True, slots=True)
class WireCall:
    """A call, and the form that its answer takes: v2's, or the plain one."""

    call: InferCall
    request: v2.V2Request | None = None

    def for_version(self, version: str) -> "WireCall":
        """The same, of a certain version of the model."""
        return replace(self, call=replace(self.call, version=version)) if version else self


@dataclass(frozen=True, slots=True)
class Answer:
    """A body and its content type."""

    body: bytes
    content_type: bytes


def parse(content_type: str, body: bytes) -> WireCall:
    """Raises BadInput with what is wrong and what is accepted."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in {"application/json", ""}:
        return _parse_json(_object(body))
    if kind == "text/plain":
        return WireCall(texts.parse_plain(body))
    if kind == BINARY_TYPE:
        return _parse_binary(content_type.strip().lower(), body)
    raise BadInput(f"content type {v2.short(kind)} is not served here: send application/json, text/plain or {BINARY_TYPE}")


def render(asked: WireCall, task: Task, result: InferResult, model_name: str, digest: str) -> Answer:
    """The answer in the request's form."""
    if asked.request is None:
        return Answer(texts.render(task, result, model_name, digest), JSON)
    rendered = v2.render(asked.request, result, model_name, {"model_digest": digest})
    return Answer(rendered.body, JSON if rendered.header_bytes is None else binary_content_type(rendered.header_bytes))


def binary_content_type(header_bytes: int) -> bytes:
    return b"%b;json-header-size=%d" % (BINARY_TYPE.encode(), header_bytes)


def as_json(content_type: bytes, body: bytes) -> bytes:
    """A model's answer without binary tensors, for those who compare answers; any other body as it is."""
    size = _HEADER_SIZE.fullmatch(content_type.decode("latin-1"))
    return body if size is None else v2.as_json(body[: int(size[1])], body[int(size[1]) :])


def _parse_json(fields: dict[str, Any]) -> WireCall:
    inputs = fields.get("inputs")
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        return _as_v2(fields)
    return WireCall(texts.parse(fields))


def _parse_binary(content_type: str, body: bytes) -> WireCall:
    size = _HEADER_SIZE.fullmatch(content_type)
    if size is None or int(size[1]) > len(body):
        raise BadInput(f"the content type must be {BINARY_TYPE};json-header-size=N, N being the bytes of JSON before the binary tensors")
    length = int(size[1])
    return _as_v2(_object(body[:length]), body[length:])


def _as_v2(fields: dict[str, Any], tail: bytes = b"") -> WireCall:
    request = v2.parse(fields, tail)
    return WireCall(request.call, request)


def _object(body: bytes) -> dict[str, Any]:
    fields = json_body.parsed(body)
    if not isinstance(fields, dict):
        raise BadInput("the body must be a JSON object")
    return fields
