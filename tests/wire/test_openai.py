"""The OpenAI API's bodies."""

import orjson
import pytest

from flatshare.core.errors import BadInput, Overloaded, UnknownTarget
from flatshare.wire import openai

EMBED = {"model": "acme/embedding", "input": "x"}
RERANK = {"model": "acme/ranking", "query": "x", "documents": ["a", {"text": "b"}]}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("acme/embedding", ("acme/embedding", "live", "")),
        ("acme/embedding/query", ("acme/embedding", "live", "query")),
        ("acme/embedding@7/query", ("acme/embedding", "7", "query")),
        ("acme/intent@next", ("acme/intent", "next", "")),
    ],
)
def test_a_models_name_is_taken_apart(name: str, found: tuple[str, str, str]) -> None:
    model = openai.parse_embedding(orjson.dumps(EMBED | {"model": name})).model
    assert (model.model, model.label, model.part) == found


@pytest.mark.parametrize("name", ["", "gpt-4", "a/b/c/d", "a/@x", "a b/c", 7, None, "a/" + "b" * 600])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(BadInput, match="'model' must be TENANT/NAME"):
        openai.parse_embedding(orjson.dumps(EMBED | {"model": name}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input": []}, "must be a text or a list of texts"),
        ({"input": [1, 2]}, "token ids differ"),
        ({"encoding_format": "int8"}, "must be float or base64"),
        ({"typo": 1}, "'typo' is not supported here"),
    ],
)
def test_an_embedding_call_that_is_wrong_says_so(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        openai.parse_embedding(orjson.dumps(EMBED | change))


@pytest.mark.parametrize("change", [{"query": 1}, {"documents": []}, {"documents": [{"x": 1}]}, {"top_n": 0}, {"top_n": "2"}])
def test_a_rerank_call_that_is_wrong_says_so(change: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        openai.parse_rerank(orjson.dumps(RERANK | change))


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        openai.parse_rerank(body)


def test_documents_may_be_objects_and_the_best_are_kept() -> None:
    call = openai.parse_rerank(orjson.dumps(RERANK | {"top_n": 1}))
    assert orjson.loads(call.body) == {"query": "x", "passages": ["a", "b"]}
    answer = openai.render_rerank(call, orjson.dumps({"results": [{"index": 1, "score": 2.0}, {"index": 0, "score": 1.0}]}))
    assert orjson.loads(answer)["results"] == [{"index": 1, "relevance_score": 2.0}]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadInput("x"), 400, "invalid_request_error"),
        (UnknownTarget("x"), 404, "not_found_error"),
        (Overloaded("x"), 429, "rate_limit_error"),
        (ValueError("x"), 500, "server_error"),
    ],
)
def test_errors_are_in_their_clients_form(error: Exception, status: int, kind: str) -> None:
    reply = openai.error_reply(error, "a sentence")
    assert (reply.status, orjson.loads(reply.body)["error"]["type"]) == (status, kind)
