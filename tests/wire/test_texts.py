"""Bodies of text models: three forms in, the same form out, and a sentence for whatever else comes."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import Embeddings, TextCall
from flatshare.core.errors import BadInput
from flatshare.core.ids import ModelDigest
from flatshare.wire.texts import MAX_TEXTS, Form, TextRequest, as_vectors, parse, render

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, min_size=1, max_size=8)


def v2(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    return {"inputs": [{**tensor, **changes}]}


BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "not valid JSON"),
    "cut": (b'{"inputs": "a', "not valid JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "not valid JSON"),
    "half a character": (b'{"inputs": "\\ud800"}', "not valid JSON"),
    "deeply nested": (b"[" * 10**5, "not valid JSON"),
    "a list": (["a"], 'object with "inputs"'),
    "a text": ("a", 'object with "inputs"'),
    "no inputs": ({"input": "a"}, 'object with "inputs"'),
    "null": ({"inputs": None}, "at least one text"),
    "a number": ({"inputs": 1}, "at least one text"),
    "an object": ({"inputs": {}}, "at least one text"),
    "no text": ({"inputs": []}, "at least one text"),
    "a number among texts": ({"inputs": ["a", 1]}, "at least one text"),
    "a list among texts": ({"inputs": ["a", ["b"]]}, "at least one text"),
    "a tensor after a text": ({"inputs": ["a", {}]}, "at least one text"),
    "too many texts": ({"inputs": ["a"] * (MAX_TEXTS + 1)}, "split the call"),
    "v2, two tensors": ({"inputs": v2()["inputs"] * 2}, "2 input tensors"),
    "v2, without a name": (v2(name=None), "needs a name"),
    "v2, an endless name": (v2(name="n" * 10**6), "at most 256"),
    "v2, numbers": (v2(datatype="FP32"), "datatype 'FP32'"),
    "v2, datatype in lower case": (v2(datatype="bytes"), "datatype 'bytes'"),
    "v2, an endless datatype": (v2(datatype="x" * 10**6), "datatype 'xxx"),
    "v2, without a shape": (v2(shape=None), "needs a shape"),
    "v2, an empty shape": (v2(shape=[]), "needs a shape"),
    "v2, a negative shape": (v2(shape=[-2, -1]), "needs a shape"),
    "v2, a shape of zero": (v2(shape=[0], data=[]), "needs a shape"),
    "v2, a shape of bools": (v2(shape=[True, 2]), "needs a shape"),
    "v2, a shape of floats": (v2(shape=[2.0]), "needs a shape"),
    "v2, a shape of 300,000": (v2(shape=[2**62] * 300_000), "1 to 8 positive integers"),
    "v2, a shape that lies": (v2(shape=[3]), "has 2 texts, its shape [3] says 3"),
    "v2, no data": (v2(data=None), "needs data"),
    "v2, data that is a text": (v2(data="ab"), "needs data"),
    "v2, data of numbers": (v2(data=[1, 2]), "needs data"),
    "v2, data nested twice": (v2(data=[[["a"], ["b"]]]), "needs data"),
    "v2, too many texts": (v2(shape=[MAX_TEXTS + 1], data=["a"] * (MAX_TEXTS + 1)), "split the call"),
    "v2, an id that is a number": ({**v2(), "id": 7}, '"id" must be a string'),
    "v2, another output": ({**v2(), "outputs": [{"name": "logits"}]}, "may only ask for 'embedding'"),
    "v2, outputs that are text": ({**v2(), "outputs": "embedding"}, "may only ask for 'embedding'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_body_that_cannot_be_understood_is_refused_with_a_short_sentence(case: str) -> None:
    value, sentence = BAD[case]
    with pytest.raises(BadInput) as caught:
        parse("application/json", value if isinstance(value, bytes) else orjson.dumps(value))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["image/png", "application/x-www-form-urlencoded", "text/html", "json", "x" * 10**4])
def test_other_content_types_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="send application/json or text/plain"):
        parse(kind, b'{"inputs": "a"}')


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", " application/json ;x", ""])
def test_json_is_known_in_every_spelling(kind: str) -> None:
    assert parse(kind, b'{"inputs": "a"}').call == TextCall(("a",))


def test_plain_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadInput, match="not UTF-8"):
        parse("text/plain", b"\xff\xfe")


@given(st.sampled_from(["application/json", "text/plain", ""]), st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(kind: str, body: bytes) -> None:
    try:
        assert parse(kind, body).call.texts
    except BadInput:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={"name": JSON | TEXT, "datatype": JSON | st.just("BYTES"), "shape": JSON | st.lists(st.integers(1, 4)), "data": JSON | TEXTS},
)


@given(st.fixed_dictionaries({}, optional={"inputs": JSON | st.lists(JSON | TENSOR, max_size=2), "id": JSON, "outputs": JSON}))
def test_any_json_is_understood_or_refused(fields: dict[str, Any]) -> None:
    try:
        request = parse("application/json", orjson.dumps(fields))
    except BadInput:
        return
    assert all(isinstance(text, str) for text in request.call.texts)


@given(TEXTS)
def test_texts_arrive_as_they_were_sent(texts: list[str]) -> None:
    expected = TextCall(tuple(texts))
    assert parse("application/json", orjson.dumps({"inputs": texts})) == TextRequest(expected, Form.INPUTS)
    flat, column = v2(shape=[len(texts)], data=texts), v2(shape=[len(texts), 1], data=[[text] for text in texts])
    assert parse("application/json", orjson.dumps({**flat, "id": "7"})) == TextRequest(expected, Form.V2, "7")
    assert parse("application/json", orjson.dumps(column)) == TextRequest(expected, Form.V2)
    assert parse("text/plain; charset=utf-8", texts[0].encode()) == TextRequest(TextCall((texts[0],)), Form.PLAIN)


@given(st.sampled_from(Form), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_vectors_come_out_as_they_went_in(form: Form, texts: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((texts, width)).astype(np.float32)
    result = Embeddings(vectors, (3,) * texts, (0,))
    answer = orjson.loads(render(TextRequest(TextCall(("a",) * texts), form, "7"), result, "acme/query", ModelDigest("d")))
    np.testing.assert_array_equal(as_vectors(answer), vectors)


def test_the_answer_tells_tokens_truncation_and_model() -> None:
    result = Embeddings(np.ones((2, 1), np.float32), (3, 9), (1,))
    call = TextCall(("a", "b"))
    plain = orjson.loads(render(TextRequest(call, Form.INPUTS), result, "acme/query", ModelDigest("d")))
    assert plain == {"embeddings": [[1], [1]], "tokens": [3, 9], "truncated": [1], "model": {"name": "acme/query", "digest": "d"}}
    tensor = orjson.loads(render(TextRequest(call, Form.V2, "7"), result, "acme/query", ModelDigest("d")))
    assert tensor["id"] == "7"
    assert tensor["model_name"] == "acme/query"
    assert tensor["parameters"] == {"model_digest": "d", "tokens": "3,9", "truncated": "1"}
    assert tensor["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [2, 1], "data": [1, 1]}]
