"""The container contract: loads, addresses, pages and errors as data."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import ModelSource
from flatshare.core.errors import BadInput
from flatshare.core.ids import ModelKey
from flatshare.wire.container import (
    ERROR,
    PAGE_SIZE,
    SOURCE_ROOT,
    SOURCE_URI,
    LoadRequest,
    error_reply,
    error_sentence,
    parse_load,
    parse_memory,
    parse_source,
    render_models,
    source_headers,
)
from flatshare.wire.http import Reply, Request

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_a_load_names_a_folder_or_an_artifact() -> None:
    assert parse_load(b'{"model_name": "m", "url": "/opt/m"}') == LoadRequest(ModelKey("m"), ModelSource("file:///opt/m", "file:///opt/m"))
    body = b'{"model_name": "m", "url": "s3://b/p/m", "root": "s3://b/p/"}'
    assert parse_load(body) == LoadRequest(ModelKey("m"), ModelSource("s3://b/p/m", "s3://b/p/"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model_name": "m"}',
        b'{"url": "/m"}',
        b'{"model_name": "", "url": "/m"}',
        b'{"model_name": "m", "url": ""}',
        b'{"model_name": 1, "url": "/m"}',
        b'{"model_name": "m", "url": ["/m"]}',
        b'{"model_name": "a/b", "url": "/m"}',
        b'{"model_name": "a b", "url": "/m"}',
        b'{"model_name": "m\\n", "url": "/m"}',
        b'{"model_name": "m", "url": "/m", "root": null}',
        b'{"model_name": "m", "url": "/m", "root": 1}',
    ],
)
def test_a_load_that_cannot_be_understood_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        parse_load(body)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for parser in (parse_load, parse_memory):
        try:
            parser(body)
        except BadInput:
            continue


@given(st.binary(max_size=20), st.none() | st.binary(max_size=20))
def test_any_address_is_read_or_refused(uri: bytes, root: bytes | None) -> None:
    headers = {SOURCE_URI.encode(): uri} | ({} if root is None else {SOURCE_ROOT.encode(): root})
    try:
        assert isinstance(parse_source(Request("POST", "/", headers)), ModelSource)
    except BadInput:
        return


@given(TEXT, TEXT)
def test_an_address_arrives_as_it_was_sent(uri: str, root: str) -> None:
    assert parse_source(Request("POST", "/", dict(source_headers(ModelSource(uri, root))))) == ModelSource(uri, root)


def test_without_an_address_there_is_none() -> None:
    assert parse_source(Request("POST", "/", {})) is None


BUDGETS = (b"0", b"-1", b"1.5", b"true", b'"1"', b"null")


@pytest.mark.parametrize("body", [b"", b"1", b"[1]", b'"memory_bytes"', b"{}", *(b'{"memory_bytes": %b}' % value for value in BUDGETS)])
def test_a_budget_that_is_no_positive_integer_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput, match="memory_bytes"):
        parse_memory(body)


def test_a_budget_is_read() -> None:
    assert parse_memory(b'{"memory_bytes": 5}') == 5


@given(st.sets(st.text("abc0", min_size=1, max_size=5), max_size=40).map(sorted), st.integers(0, 2 * PAGE_SIZE))
def test_pages_together_are_the_whole_list_in_order(names: list[str], more: int) -> None:
    keys = sorted({*names, *(f"n{index}" for index in range(more))})
    models, after, seen = [(ModelKey(key), f"file:///{key}") for key in reversed(keys)], "", list[str]()
    while True:
        page = orjson.loads(render_models(models, after).body)
        assert len(page["models"]) <= PAGE_SIZE
        seen += [model["modelName"] for model in page["models"]]
        if "nextPageToken" not in page:
            break
        after = page["nextPageToken"]
    assert seen == keys


@given(st.text(max_size=30))
def test_an_errors_sentence_arrives(sentence: str) -> None:
    reply = error_reply(400, "BadInput", sentence)
    assert dict(reply.headers)[ERROR] == b"BadInput"
    assert error_sentence(reply) == sentence.encode("utf-8", "backslashreplace").decode()


@given(st.binary(max_size=50))
def test_any_containers_error_becomes_a_sentence(body: bytes) -> None:
    assert isinstance(error_sentence(Reply(500, body)), str)
