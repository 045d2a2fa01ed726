"""The OpenAI API as people's tools speak it, and the re-ranking call of Cohere and Jina: bodies ⇄ our plain forms.

https://platform.openai.com/docs/api-reference/embeddings · https://docs.cohere.com/reference/rerank
"""

import base64
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import orjson

from flatshare.core.errors import BadInput, FlatshareError
from flatshare.core.naming import LIVE
from flatshare.wire import faults
from flatshare.wire.http import Reply

_MODEL = re.compile(r"(?P<model>[^/@\s]+/[^/@\s]+)(?:@(?P<label>[^/@\s]+))?(?:/(?P<part>[^/@\s]+))?")
_EMBEDDING_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
_RERANK_FIELDS = {"model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc"}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class NamedModel:
    """`acme/embedding`, `acme/embedding/query`, `acme/intent@7`."""

    name: str
    model: str
    label: str
    part: str


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    model: NamedModel
    texts: list[str]
    is_base64: bool

    @property
    def body(self) -> bytes:
        return orjson.dumps({"inputs": self.texts})


@dataclass(frozen=True, slots=True)
class RerankCall:
    model: NamedModel
    query: str
    documents: list[str]
    top_n: int
    has_documents: bool

    @property
    def body(self) -> bytes:
        return orjson.dumps({"query": self.query, "passages": self.documents})


def parse_embedding(body: bytes) -> EmbeddingCall:
    """Raises BadInput."""
    fields = fields_of(body, _EMBEDDING_FIELDS)
    texts = fields.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not _are_texts(texts):
        raise BadInput("'input' must be a text or a list of texts: token ids differ from model to model, so they are not taken")
    if fields.get("dimensions") is not None:
        raise BadInput("'dimensions' is not supported: a vector has the model's own width; leave it out")
    form = fields.get("encoding_format", "float")
    if form not in {"float", "base64"}:
        raise BadInput("'encoding_format' must be float or base64")
    return EmbeddingCall(model_of(fields), texts, is_base64=form == "base64")


def render_embedding(call: EmbeddingCall, answer: bytes) -> bytes:
    """Raises BadInput if the model gives no vectors."""
    fields = orjson.loads(answer)
    if "embeddings" not in fields:
        raise BadInput(f"{call.model.name} is no embedding model")
    rows = [_encoded(row) if call.is_base64 else row for row in fields["embeddings"]]
    tokens = sum(fields.get("tokens", ()))
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return orjson.dumps(
        {"object": "list", "data": data, "model": call.model.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )


def parse_rerank(body: bytes) -> RerankCall:
    """Raises BadInput."""
    fields = fields_of(body, _RERANK_FIELDS)
    query, documents = fields.get("query"), fields.get("documents")
    if isinstance(documents, list):
        documents = [item.get("text") if isinstance(item, dict) else item for item in documents]
    if not isinstance(query, str) or not _are_texts(documents):
        raise BadInput("'query' must be a text and 'documents' a list of texts, or of objects with a 'text'")
    top_n = fields.get("top_n", len(documents))
    if type(top_n) is not int or top_n < 1:
        raise BadInput("'top_n' must be a whole number from 1 on")
    return RerankCall(model_of(fields), query, documents, top_n, has_documents=bool(fields.get("return_documents")))


def render_rerank(call: RerankCall, answer: bytes) -> bytes:
    """Raises BadInput if the model ranks nothing."""
    fields = orjson.loads(answer)
    if "results" not in fields:
        raise BadInput(f"{call.model.name} is no ranking model")
    results = [{"index": item["index"], "relevance_score": item["score"]} for item in fields["results"][: call.top_n]]
    for result in results if call.has_documents else []:
        result["document"] = {"text": call.documents[result["index"]]}
    return orjson.dumps({"object": "list", "model": call.model.name, "results": results})


def render_models(names: list[str]) -> bytes:
    return orjson.dumps(
        {"object": "list", "data": [{"id": n, "object": "model", "created": 0, "owned_by": n.partition("/")[0]} for n in names]}
    )


def error_reply(error: BaseException, message: str) -> Reply:
    """As OpenAI's clients read it."""
    status = faults.v2_fault(error).status if isinstance(error, FlatshareError) else 500
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Reply(status, orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": type(error).__name__}}))


def model_of(fields: dict[str, Any]) -> NamedModel:
    """Which model is meant. Raises BadInput."""
    name = fields.get("model")
    found = _MODEL.fullmatch(name) if isinstance(name, str) and len(name) <= 512 else None
    if found is None:
        raise BadInput("'model' must be TENANT/NAME, with /PART behind it if the model has several, such as acme/embedding/query")
    return NamedModel(found[0], found["model"], found["label"] or LIVE, found["part"] or "")


def fields_of(body: bytes, known: set[str]) -> dict[str, Any]:
    """The body's fields. Raises BadInput for one that is not known: what is not done is not ignored."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadInput("the body must be a JSON object")
    if unknown := sorted(fields.keys() - known):
        raise BadInput(f"'{unknown[0][:64]}' is not supported here: known are {', '.join(sorted(known))}")
    return fields


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _encoded(row: list[float]) -> str:
    return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
