"""The OpenAI API's bodies."""

from typing import Any

import orjson
import pytest

from flatshare.core.errors import BadInput, Overloaded, UnknownTarget
from flatshare.wire import openai, openai_writing

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


COMPLETE = {"model": "acme/drafts", "prompt": "hello"}
CHAT = {"model": "acme/drafts", "messages": [{"role": "user", "content": "hello"}]}


def _parsed(fields: dict[str, Any]) -> openai_writing.WritingCall:
    parse = openai_writing.parse_chat if "messages" in fields else openai_writing.parse_completion
    return parse(orjson.dumps(fields))


def test_what_is_left_out_means_what_it_means_at_openai() -> None:
    assert _parsed(COMPLETE).parameters == {"max_tokens": 16, "temperature": 1.0}
    assert _parsed(CHAT).parameters == {"max_tokens": 256, "temperature": 1.0}
    assert _parsed(COMPLETE | {"beams": 2}).parameters["temperature"] == 0
    assert _parsed(CHAT | {"max_completion_tokens": 7}).parameters["max_tokens"] == 7


def test_what_asks_for_nothing_is_taken() -> None:
    nothing: dict[str, Any] = {
        "logprobs": None,
        "presence_penalty": 0,
        "logit_bias": {},
        "tools": [],
        "echo": False,
        "best_of": 1,
        "user": "x",
    }
    assert _parsed(COMPLETE | nothing).parameters == _parsed(COMPLETE).parameters


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (COMPLETE | {"presence_penalty": 0.5}, "'presence_penalty' is not supported"),
        (COMPLETE | {"logprobs": 3}, "'logprobs' is not supported"),
        (CHAT | {"tools": [{"type": "function"}]}, "'tools' is not supported"),
        (CHAT | {"response_format": {"type": "json_object"}}, "'response_format' is not supported"),
        (CHAT | {"messages": []}, "at least one message"),
        (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text only"),
        (COMPLETE | {"stream_options": {"x": 1}}, "include_usage only"),
        (COMPLETE | {"typo": 1}, "'typo' is not supported here"),
    ],
)
def test_a_writing_call_that_is_wrong_says_so(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        _parsed(fields)


def test_a_message_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert _parsed(CHAT | {"messages": [{"role": "user", "content": parts}]}).body == _parsed(CHAT).body


def test_a_stream_that_fails_in_the_middle_is_an_event_that_clients_raise() -> None:
    call = _parsed(COMPLETE | {"stream": True})
    envelope, index_of = openai_writing.Envelope(call, "id", 0), openai_writing.Choices(call)
    event = openai_writing.render_line(envelope, b'{"error": "no more memory", "type": "OutOfMemory"}', index_of)
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["message"] == "no more memory"
