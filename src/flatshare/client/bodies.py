"""Texts and tensors ⇄ the bodies of InvokeEndpoint, as the caller's side sees them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from flatshare.client.answers import Embeddings, Label, Outputs, Ranked
from flatshare.core.call import Scalar
from flatshare.core.errors import BadInput, CallFailed
from flatshare.core.settings import MAX_BODY_BYTES
from flatshare.core.tensor import BYTES, Tensor
from flatshare.wire import v2
from flatshare.wire.infer import BINARY_TYPE, binary_content_type

JSON_TYPE = "application/json"
_BATCH_BYTES = MAX_BODY_BYTES * 3 // 4  # JSON escapes and the rest of the body have to fit beside the texts


@dataclass(frozen=True, slots=True)
class Answer:
    """One InvokeEndpoint's answer."""

    body: bytes
    content_type: str
    digest: str


@dataclass(frozen=True, slots=True)
class Body:
    payload: bytes
    content_type: str = JSON_TYPE


def batches(texts: Sequence[str], max_texts: int) -> Iterator[Sequence[str]]:
    """The texts in calls of at most `max_texts` that fit the contract's limit of a body. Raises BadInput for a text that cannot."""
    if not texts:
        raise BadInput("give at least one text")
    first, size = 0, 0
    for index, text in enumerate(texts):
        length = len(text.encode("utf-8", "surrogatepass"))
        if length > _BATCH_BYTES:
            raise BadInput(f"text {index} has {length} bytes, and a call takes {_BATCH_BYTES}: shorten it, no model reads that much")
        if index > first and (index - first >= max_texts or size + length > _BATCH_BYTES):
            yield texts[first:index]
            first, size = index, 0
        size += length
    yield texts[first:]


def texts_body(texts: Sequence[str], parameters: Mapping[str, Scalar]) -> Body:
    return Body(_json({"inputs": list(texts)} | ({"parameters": dict(parameters)} if parameters else {})))


def ranking_body(query: str, passages: Sequence[str]) -> Body:
    return Body(_json({"query": query, "passages": list(passages)}))


def tensors_body(inputs: Mapping[str, NDArray[Any] | Sequence[str]], wanted: Sequence[str], parameters: Mapping[str, Scalar]) -> Body:
    """A v2 request with binary tensors: numbers travel as they lie in memory."""
    tensors = [_tensor(name, value) for name, value in inputs.items()]
    raw = [v2.to_bytes(tensor) for tensor in tensors]
    head: dict[str, Any] = {
        "inputs": [
            {"name": t.name, "datatype": t.datatype, "shape": t.shape, "parameters": {"binary_data_size": len(data)}}
            for t, data in zip(tensors, raw, strict=True)
        ],
        "outputs": [{"name": name} for name in wanted],
        "parameters": {**parameters, "binary_data_output": True},
    }
    text = _json(head if wanted else {key: value for key, value in head.items() if key != "outputs"})
    return Body(text + b"".join(raw), binary_content_type(len(text)).decode())


def embeddings_of(answer: Answer) -> Embeddings:
    fields = _object(answer, "embeddings")
    vectors = np.asarray(fields["embeddings"], np.float32)
    return Embeddings(vectors, tuple(fields.get("tokens", ())), tuple(fields.get("truncated", ())), answer.digest)


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """The answers of several batches as if there had been one."""
    if len(parts) == 1:
        return parts[0]
    digests = {part.digest for part in parts}
    if len(digests) > 1:
        raise CallFailed("the model was replaced between two batches of this call, and vectors of two models do not compare: call again")
    starts = np.cumsum([0, *(len(part.vectors) for part in parts)])
    truncated = (int(start) + index for start, part in zip(starts, parts, strict=False) for index in part.truncated)
    tokens = (count for part in parts for count in part.tokens)
    return Embeddings(np.concatenate([part.vectors for part in parts]), tuple(tokens), tuple(truncated), digests.pop())


def labels_of(answer: Answer) -> list[list[Label]]:
    return [[Label(item["label"], item["score"]) for item in row] for row in _object(answer, "predictions")["predictions"]]


def ranks_of(answer: Answer) -> list[Ranked]:
    return [Ranked(item["index"], item["score"]) for item in _object(answer, "results")["results"]]


def texts_of(answer: Answer) -> list[str]:
    return list(_object(answer, "texts")["texts"])


def outputs_of(answer: Answer) -> Outputs:
    """The tensors of a v2 answer, binary or JSON."""
    size = answer.content_type.partition("json-header-size=")[2]
    text, tail = (answer.body[: int(size)], answer.body[int(size) :]) if answer.content_type.startswith(BINARY_TYPE) else (answer.body, b"")
    request = v2.parse({"inputs": _parsed(text, "outputs")["outputs"]}, tail)  # an answer's outputs are spelled as a request's inputs
    return Outputs({name: tensor.data for name, tensor in request.call.inputs.items()}, answer.digest)


def _tensor(name: str, value: NDArray[Any] | Sequence[str]) -> Tensor:
    if isinstance(value, np.ndarray):
        return Tensor.of(name, value)
    data = np.empty(len(value), object)
    data[:] = [text.encode() for text in value]
    return Tensor(name, BYTES, data)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise BadInput(f"the call holds something that is no text or number: {error}") from error


def _object(answer: Answer, wanted: str) -> dict[str, Any]:
    return _parsed(answer.body, wanted)


def _parsed(text: bytes, wanted: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CallFailed(f"the model answered something that is not JSON: {text[:80]!r}") from error
    if not isinstance(fields, dict) or wanted not in fields:
        raise CallFailed(f"the answer holds no '{wanted}': this model is of another kind, or its code answers in a form of its own")
    return fields
