"""Bodies of text models ⇄ calls: v2 JSON with a BYTES tensor, `{"inputs": …}`, and `text/plain`.

v2 is the Open Inference Protocol: https://github.com/kserve/open-inference-protocol
"""

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Any

import numpy as np
import orjson

from flatshare.core.call import Embeddings, TextCall
from flatshare.core.errors import BadInput
from flatshare.core.ids import ModelDigest
from flatshare.wire import json_body

MAX_TEXTS = 4096
_MAX_RANK = 8  # more is no tensor of texts, and the product of a long shape takes minutes
TENSOR = "embedding"


class Form(Enum):
    """The shape in which a request came, and its answer goes."""

    V2 = "v2"
    INPUTS = "inputs"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class TextRequest:
    call: TextCall
    form: Form
    id: str | None = None


def parse(content_type: str, body: bytes) -> TextRequest:
    """Raises BadInput with what is wrong and what is accepted."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/plain":
        return TextRequest(TextCall((_utf8(body),)), Form.PLAIN)
    if kind not in {"application/json", ""}:
        raise BadInput(f"content type {_short(kind)} is not served here: send application/json or text/plain")
    fields = _json_object(body)
    inputs = fields.get("inputs")
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        return _parse_v2(fields, inputs)
    return TextRequest(TextCall(_texts(inputs)), Form.INPUTS)


def render(request: TextRequest, result: Embeddings, model_name: str, digest: ModelDigest) -> bytes:
    """The answer as JSON, in the request's form."""
    if request.form is not Form.V2:
        answer = {
            "embeddings": result.vectors,
            "tokens": result.tokens,
            "truncated": result.truncated,
            "model": {"name": model_name, "digest": digest},
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    output = {"name": TENSOR, "datatype": "FP32", "shape": result.vectors.shape, "data": result.vectors.reshape(-1)}
    answer = {
        "model_name": model_name,
        "model_version": "1",
        "outputs": [output],
        "parameters": {
            "model_digest": digest,
            "tokens": ",".join(map(str, result.tokens)),
            "truncated": ",".join(map(str, result.truncated)),
        },
    }
    if request.id is not None:
        answer["id"] = request.id
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _json_object(body: bytes) -> dict[str, Any]:
    fields = json_body.parsed(body)
    if not isinstance(fields, dict) or "inputs" not in fields:
        raise BadInput('the body must be an object with "inputs": a text, a list of texts, or v2 tensors')
    return fields


def _texts(inputs: object) -> tuple[str, ...]:
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput('"inputs" must be a text or a list of at least one text')
    return _bounded(texts)


def _bounded(texts: list[str]) -> tuple[str, ...]:
    if len(texts) > MAX_TEXTS:
        raise BadInput(f"{len(texts)} texts in one call: at most {MAX_TEXTS} are accepted, split the call")
    return tuple(texts)


def _parse_v2(fields: dict[str, Any], inputs: list[Any]) -> TextRequest:
    identity = fields.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadInput('"id" must be a string')
    if len(inputs) != 1:
        raise BadInput(f"{len(inputs)} input tensors: this model takes one BYTES tensor of texts")
    _check_outputs(fields.get("outputs"))
    return TextRequest(TextCall(_tensor_texts(inputs[0])), Form.V2, identity)


def _tensor_texts(tensor: dict[str, Any]) -> tuple[str, ...]:
    name, datatype, shape, data = (tensor.get(field) for field in ("name", "datatype", "shape", "data"))
    if not isinstance(name, str) or len(name) > 256:
        raise BadInput("an input tensor needs a name of at most 256 characters")
    if datatype != "BYTES":
        raise BadInput(f"tensor '{name}' is of datatype {_short(datatype)}: this model takes texts, datatype BYTES")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_RANK or not all(type(n) is int and n > 0 for n in shape):
        raise BadInput(f"tensor '{name}' needs a shape of 1 to {_MAX_RANK} positive integers, such as [2] or [2, 1]")
    texts = _flat(data)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"tensor '{name}' needs data: a list of texts")
    if prod(shape) != len(texts):
        raise BadInput(f"tensor '{name}' has {len(texts)} texts, its shape {shape} says {prod(shape)}")
    return _bounded(texts)


def _flat(data: object) -> list[Any]:
    """v2 data may be nested as its shape is; one level is what [n, 1] needs."""
    if not isinstance(data, list):
        return []
    return [item for row in data for item in (row if isinstance(row, list) else [row])]


def _check_outputs(outputs: object) -> None:
    if outputs is None:
        return
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and o.get("name") == TENSOR for o in outputs):
        raise BadInput(f"\"outputs\" may only ask for '{TENSOR}'")


def _short(value: object) -> str:
    """For an error's sentence: a caller's megabytes are not sent back."""
    return repr(value)[:64]


def _utf8(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"the body is not UTF-8: {error}") from error


def as_vectors(answer: dict[str, Any]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The vectors [texts, width] in an answer of either form: what clients and benchmarks need."""
    if "embeddings" in answer:
        return np.asarray(answer["embeddings"], np.float32)
    output = answer["outputs"][0]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])
