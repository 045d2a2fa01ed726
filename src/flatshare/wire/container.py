"""The SageMaker multi-model container contract, as data, with our extensions: https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html

Extensions, all optional: a load may say the artifact's `root`; an invoke may carry the model's address, so that a model that is
absent is loaded in the same call; answers carry the digest of the weights and where the time went; `GET /models/{id}/metadata` tells
what a model takes and gives, `GET /models/{id}/artifact` whether there is one.
"""

import re
from dataclasses import dataclass

import orjson

from flatshare.core import errors
from flatshare.core.call import FIRST_VERSION, ModelSource
from flatshare.core.errors import BadInput, FlatshareError, ModelFailed
from flatshare.core.ids import ModelKey
from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.wire import json_body
from flatshare.wire.http import Reply, Request

CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
"""What caller and model tell each other beside the body: a parameter of the model's request and response, of this name."""
TARGET_MODEL = "x-amzn-sagemaker-target-model"
MODEL_VERSION = "x-flatshare-model-version"
"""Which version of the model the caller wants: the latest, if it is not said. In an answer of a model that has versions: which gave it."""
DEADLINE_MS = "x-flatshare-deadline-ms"
SOURCE_URI = "x-flatshare-source-uri"
SOURCE_ROOT = "x-flatshare-source-root"
STREAM = b"x-flatshare-stream"
"""The caller wants the answer in parts, as they come."""
MODEL_DIGEST = b"x-flatshare-model-digest"
COLD_START_MS = b"x-flatshare-cold-start-ms"
COLD_CAUSE = b"x-flatshare-cold-start-cause"
MODEL_MS = b"x-flatshare-model-ms"
QUEUE_MS = b"x-flatshare-queue-ms"
ERROR = b"x-flatshare-error"
PAGE_SIZE = 100
_SOURCE_URI, _SOURCE_ROOT = SOURCE_URI.encode(), SOURCE_ROOT.encode()
_KEY = re.compile(r"[0-9A-Za-z._-]{1,256}")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    key: ModelKey
    source: ModelSource


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    signature: Signature
    digest: str


def parse_load(body: bytes) -> LoadRequest:
    """`{"model_name": id, "url": folder or URI}`. Raises BadInput."""
    fields = json_body.parsed(body)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) and fields[name] for name in ("model_name", "url")):
        raise BadInput('the body must be {"model_name": …, "url": …}')
    if not _KEY.fullmatch(fields["model_name"]):
        raise BadInput("model_name must have 1 to 256 characters of A-Z, a-z, 0-9, '.', '_' and '-': it becomes a part of paths")
    uri = fields["url"] if "://" in fields["url"] else f"file://{fields['url']}"
    root = fields.get("root", uri)
    if not isinstance(root, str):
        raise BadInput("root must be a URI, or be left out")
    return LoadRequest(ModelKey(fields["model_name"]), ModelSource(uri, root))


def parse_source(request: Request) -> ModelSource | None:
    """The model's address, if the caller sent it along. Raises BadInput."""
    uri = request.headers.get(_SOURCE_URI)
    if uri is None:
        return None
    try:
        return ModelSource(uri.decode(), request.headers.get(_SOURCE_ROOT, uri).decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"{SOURCE_URI} or {SOURCE_ROOT} is not UTF-8: {error}") from error


def parse_deadline_ms(text: str) -> float:
    """How long the caller will wait for the answer. Raises BadInput."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise BadInput(f"{DEADLINE_MS} must be milliseconds above zero, not '{text[:32]}'")
    return value


def less_time(deadline_ms: bytes, passed_s: float) -> bytes:
    """What is left of a deadline; the instance refuses what is hardly any. Raises BadInput."""
    return b"%.3f" % max(0.001, parse_deadline_ms(deadline_ms.decode("latin-1")) - 1e3 * passed_s)


def source_headers(source: ModelSource) -> list[tuple[bytes, bytes]]:
    return [(_SOURCE_URI, source.uri.encode()), (_SOURCE_ROOT, source.root.encode())]


def parse_memory(body: bytes) -> int:
    """`{"memory_bytes": n}` of our own `PUT /flatshare/memory`."""
    try:
        value = orjson.loads(body)["memory_bytes"]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise BadInput('the body must be {"memory_bytes": …}') from error
    if type(value) is not int or value <= 0:
        raise BadInput("memory_bytes must be a positive integer")
    return value


def render_model(key: ModelKey, uri: str) -> dict[str, str]:
    return {"modelName": key, "modelUrl": uri}


def render_models(models: list[tuple[ModelKey, str]], after: str) -> Reply:
    """One page, ordered by key; the token of the next page is the last key of this one."""
    following = sorted(pair for pair in models if pair[0] > after)
    page = following[:PAGE_SIZE]
    answer: dict[str, object] = {"models": [render_model(key, uri) for key, uri in page]}
    if len(following) > PAGE_SIZE:
        answer["nextPageToken"] = page[-1][0]
    return Reply(200, orjson.dumps(answer))


def render_metadata(signature: Signature, digest: str) -> Reply:
    """`GET /models/{id}/metadata`."""
    answer = {"task": signature.task, "platform": signature.platform, "digest": digest}
    sides = {"inputs": signature.inputs, "outputs": signature.outputs, "versions": signature.versions}
    return Reply(200, orjson.dumps({**answer, **sides, "is_decoupled": signature.is_decoupled}))


def parse_metadata(body: bytes) -> ModelMetadata:
    """The inverse of `render_metadata`, of an instance of ours."""
    fields = orjson.loads(body)
    sides = {name: tuple(TensorInfo(**item | {"shape": tuple(item["shape"])}) for item in fields[name]) for name in ("inputs", "outputs")}
    versions, is_decoupled = tuple(fields.get("versions", (FIRST_VERSION,))), fields.get("is_decoupled", False)
    signature = Signature(Task(fields["task"]), fields["platform"], **sides, versions=versions, is_decoupled=is_decoupled)
    return ModelMetadata(signature, fields["digest"])


def error_sentence(reply: Reply) -> str:
    """What a container said went wrong; it may be any program, so any body will do."""
    try:
        return str(orjson.loads(reply.body)["error"])
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return reply.body[:1024].decode("utf-8", "replace")


def error_in(reply: Reply) -> FlatshareError:
    """The error that a reply of 300 and above tells. A container that is not ours, and a bug of ours, is a ModelFailed."""
    name = next((value.decode("latin-1") for key, value in reply.headers if key == ERROR), "")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, FlatshareError):
        return kind(error_sentence(reply))
    return BadInput(error_sentence(reply)) if 400 <= reply.status < 500 else ModelFailed(error_sentence(reply))


def error_reply(status: int, error_name: str, sentence: str) -> Reply:
    sendable = sentence.encode("utf-8", "backslashreplace").decode()  # names of files may hold what UTF-8 cannot
    return Reply(status, orjson.dumps({"error": sendable}), headers=[(ERROR, error_name.encode())])
