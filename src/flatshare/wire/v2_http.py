"""Open Inference Protocol v2 over HTTP, everything but the tensors: paths, headers, and the JSON of its other answers.

https://github.com/kserve/open-inference-protocol, and Triton's extensions:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from flatshare.core.errors import BadInput, FlatshareError
from flatshare.core.signature import TensorInfo
from flatshare.wire import faults, infer, json_body
from flatshare.wire.container import ModelMetadata
from flatshare.wire.http import JSON, Reply, Request

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics", "parameters")
_HEADER_LENGTH = b"inference-header-content-length"
_MODEL = re.compile(
    r"/v2/models/(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<verb>/ready|/config|/infer|/stats|/trace/setting)?", re.DOTALL
)
_REPOSITORY = re.compile(r"/v2/repository/models/(?P<name>.+)/(?P<verb>load|unload)", re.DOTALL)
_SHARED_MEMORY = re.compile(r"/v2/(?:system|cuda)sharedmemory(?:/.*)?")
_BINARY = b"application/octet-stream"
_HEADER_SIZE = re.compile(rb"json-header-size=(\d+)$")
_DATA_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True, slots=True)
class ModelPath:
    """`/v2/models/{name}[/versions/{version}]{verb}`. A name may hold slashes, since clients do not encode them."""

    name: str
    version: str
    verb: str


def parse_model_path(path: str) -> ModelPath | None:
    match = _MODEL.fullmatch(path)
    return None if match is None else ModelPath(match["name"], match["version"] or "", match["verb"] or "")


def parse_repository_path(path: str) -> ModelPath | None:
    """`/v2/repository/models/{name}/load` or `unload`."""
    match = _REPOSITORY.fullmatch(path)
    return None if match is None else ModelPath(match["name"], "", match["verb"])


def is_shared_memory(path: str) -> bool:
    return _SHARED_MEMORY.fullmatch(path) is not None


def json_header_bytes(request: Request, body: bytes) -> int:
    """How much of the body is JSON: binary tensors lie behind it. Raises BadInput."""
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return len(body)
    if not (text.isdigit() and len(text) < 10 and int(text) <= len(body)):
        raise BadInput(f"Inference-Header-Content-Length must be a number of at most the body's {len(body)} bytes")
    return int(text)


def instance_headers(json_bytes: int, model_name: str) -> tuple[tuple[bytes, bytes], ...]:
    """As the container contract names it. Said of JSON alone too, it makes sure that no other form than v2 is taken."""
    return (b"content-type", infer.binary_content_type(json_bytes)), (b"x-amzn-sagemaker-target-model", model_name.encode())


def json_size(content_type: bytes) -> int | None:
    """How much of an instance's answer is JSON before its binary tensors; None if all is."""
    size = _HEADER_SIZE.search(content_type)
    return None if size is None else int(size[1])


def infer_reply(answer: Reply, headers: list[tuple[bytes, bytes]]) -> Reply:
    """An instance's answer as v2 over HTTP has it."""
    size = json_size(answer.content_type)
    if size is None:
        return Reply(200, answer.body, JSON, headers)
    return Reply(200, answer.body, _BINARY, [*headers, (b"Inference-Header-Content-Length", b"%d" % size)])


def error_reply(error: BaseException, sentence: str) -> Reply:
    """`{"error": …}`, as Triton answers. Whoever may call again is told when, and who is unknown how to say who it is."""
    headers = []
    status = faults.v2_fault(error).status
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, FlatshareError) and error.can_retry:
        headers.append((b"retry-after", b"1"))
    sendable = sentence.encode("utf-8", "backslashreplace").decode()
    return Reply(status, orjson.dumps({"error": sendable}), headers=headers)


def parse_object(body: bytes) -> Mapping[str, Any]:
    """A JSON object, which may be left out. Raises BadInput."""
    if not body:
        return {}
    fields = json_body.parsed(body)
    if not isinstance(fields, dict):
        raise BadInput("the body must be a JSON object")
    return fields


def metadata(name: str, model: ModelMetadata) -> dict[str, Any]:
    """A model's metadata. `parameters` is ours: what the model is for, and the digest of its weights."""
    signature = model.signature
    return {
        "name": name,
        "versions": list(signature.versions),
        "platform": signature.platform,
        "inputs": [_tensor_metadata(info) for info in signature.inputs],
        "outputs": [_tensor_metadata(info) for info in signature.outputs],
        "parameters": {"task": signature.task, "model_digest": model.digest},
    }


def config(name: str, model: ModelMetadata) -> dict[str, Any]:
    """A model's configuration in Triton's form. `max_batch_size` 0 says that the shapes are whole, batch included."""
    signature = model.signature
    return {
        "name": name,
        "platform": signature.platform,
        "backend": "flatshare",
        "version_policy": {"specific": {"versions": list(map(int, signature.versions))}},
        "max_batch_size": 0,
        "input": [_tensor_config(info) | {"optional": info.is_optional} for info in signature.inputs],
        "output": [_tensor_config(info) for info in signature.outputs],
        "model_transaction_policy": {"decoupled": signature.is_decoupled},
    }


def _tensor_metadata(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": info.datatype, "shape": list(info.shape)}


def _tensor_config(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "data_type": _DATA_TYPES.get(info.datatype, f"TYPE_{info.datatype}"), "dims": list(info.shape)}
