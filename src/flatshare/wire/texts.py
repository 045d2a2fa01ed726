"""Plain bodies of text models: `{"inputs": …}`, `{"query": …, "passages": …}` and `text/plain` ⇄ calls and results."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from flatshare.core.call import InferCall, InferResult, Scalar
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import BYTES, text_tensor

TEXT, QUERY, PASSAGES, MESSAGES = "text", "query", "passages", "messages"
EMBEDDING, LABEL, SCORE = "embedding", "label", "score"


def parse(fields: Mapping[str, Any]) -> InferCall:
    """Raises BadInput with what is accepted."""
    parameters = _parameters(fields)
    if MESSAGES in fields:
        return InferCall({MESSAGES: text_tensor(MESSAGES, [orjson.dumps(fields[MESSAGES]).decode()])}, parameters)
    if QUERY in fields or PASSAGES in fields:
        query = _texts(fields.get(QUERY), QUERY)
        if len(query) != 1:
            raise BadInput('"query" must be one text')
        return InferCall(
            {QUERY: text_tensor(QUERY, query), PASSAGES: text_tensor(PASSAGES, _texts(fields.get(PASSAGES), PASSAGES))}, parameters
        )
    if "inputs" not in fields:
        raise BadInput(
            'the body must be an object with "inputs" (a text, a list of texts, or v2 tensors), with "query" and "passages", or "messages"'
        )
    return InferCall({TEXT: text_tensor(TEXT, _texts(fields["inputs"], "inputs"))}, parameters)


def parse_plain(body: bytes) -> InferCall:
    """`text/plain`: the whole body is one text."""
    try:
        return InferCall({TEXT: text_tensor(TEXT, [body.decode()])})
    except UnicodeDecodeError as error:
        raise BadInput(f"the body is not UTF-8: {error}") from error


def render(task: Task, result: InferResult, model_name: str, digest: str) -> bytes:
    """The answer as JSON. Raises BadInput for a model that has no plain form."""
    view = _VIEWS.get(task)
    if view is None:
        raise BadInput("this model's answers are tensors: send a v2 request")
    answer = {**view(result), **result.parameters, "model": {"name": model_name, "digest": digest}}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _embeddings(result: InferResult) -> dict[str, Any]:
    return {"embeddings": result.output(EMBEDDING).data}


def _predictions(result: InferResult) -> dict[str, Any]:
    """Labels with their scores, the best first, per text."""
    labels, scores = result.output(LABEL).data, result.output(SCORE).data
    pairs = [zip(names, row, strict=True) for names, row in zip(labels, scores, strict=True)]
    return {"predictions": [[{"label": name.decode(), "score": float(score)} for name, score in row] for row in pairs]}


def _pieces(result: InferResult) -> dict[str, Any]:
    """The labelled pieces of each text, in order; characters are counted from 0, the end excluded."""
    names = {tensor.name: tensor for tensor in result.outputs}
    columns = {name: names[name].texts() for name in (LABEL, "piece")}
    columns |= {name: names[name].data.tolist() for name in (SCORE, "begin", "end") if name in names}
    tokens = result.parameters["tokens"]
    answers: list[list[dict[str, Any]]] = [[] for _ in tokens] if isinstance(tokens, tuple) else []
    for index, *row in zip(names["text_index"].data, *columns.values(), strict=True):
        answers[index].append(dict(zip(columns, row, strict=True)))
    return {"predictions": answers}


def _ranks(result: InferResult) -> dict[str, Any]:
    """Passages by index, the best first."""
    scores = result.output(SCORE).data
    return {"results": [{"index": int(index), "score": float(scores[index])} for index in np.argsort(-scores, kind="stable")]}


def _generated(result: InferResult) -> dict[str, Any]:
    """Texts in the order of prompts, the best or first of each prompt first; and what else the model says of each."""
    answer: dict[str, Any] = {"texts": result.output(TEXT).texts()}
    for tensor in result.outputs:
        if tensor.name != TEXT:
            answer[f"{tensor.name.removesuffix('s')}s"] = tensor.texts() if tensor.datatype == BYTES else tensor.data
    return answer


_VIEWS: Mapping[Task, Callable[[InferResult], dict[str, Any]]] = {
    Task.EMBEDDING: _embeddings,
    Task.CLASSIFICATION: _predictions,
    Task.TOKEN_CLASSIFICATION: _pieces,
    Task.RANKING: _ranks,
    Task.GENERATION: _generated,
}


def _parameters(fields: Mapping[str, Any]) -> dict[str, Scalar]:
    """As scalars: a list of texts becomes its JSON. "stream" may stand beside them, as many clients send it."""
    parameters = fields.get("parameters", {})
    if not parameters and "stream" not in fields and isinstance(parameters, dict):
        return {}
    if not isinstance(parameters, dict):
        raise BadInput('"parameters" must be an object of texts, numbers and booleans')
    flat = {name: orjson.dumps(value).decode() if isinstance(value, list) else value for name, value in parameters.items()}
    if not all(isinstance(value, str | int | float | bool) for value in flat.values()):
        raise BadInput('"parameters" must be an object of texts, numbers, booleans and lists')
    return flat | ({"stream": True} if fields.get("stream") is True else {})


def _texts(value: object, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput(f'"{name}" must be a text or a list of at least one text')
    return texts


def as_vectors(answer: dict[str, Any]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The vectors [texts, width] in an answer of either form: what clients and benchmarks need."""
    if "embeddings" in answer:
        return np.asarray(answer["embeddings"], np.float32)
    output = answer["outputs"][0]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])
