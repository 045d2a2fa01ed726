"""Bodies in every form: the same form out, and a sentence for whatever else comes."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import InferResult
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.wire import infer
from flatshare.wire.texts import as_vectors

JSON_TYPE = "application/json"
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
    "a list": (["a"], "must be a JSON object"),
    "a text": ("a", "must be a JSON object"),
    "no inputs": ({"input": "a"}, 'object with "inputs"'),
    "null": ({"inputs": None}, "at least one text"),
    "a number": ({"inputs": 1}, "at least one text"),
    "an object": ({"inputs": {}}, "at least one text"),
    "no text": ({"inputs": []}, "at least one text"),
    "a number among texts": ({"inputs": ["a", 1]}, "at least one text"),
    "a list among texts": ({"inputs": ["a", ["b"]]}, "at least one text"),
    "a tensor after a text": ({"inputs": ["a", {}]}, "at least one text"),
    "parameters that are a list": ({"inputs": "a", "parameters": [1]}, '"parameters" must be an object'),
    "a parameter that is a list": ({"inputs": "a", "parameters": {"a": {"b": 1}}}, '"parameters" must be an object'),
    "a query without passages": ({"query": "a"}, '"passages" must be a text or a list'),
    "passages without a query": ({"passages": ["a"]}, '"query" must be a text'),
    "two queries": ({"query": ["a", "b"], "passages": ["a"]}, '"query" must be one text'),
    "v2, the same tensor twice": ({"inputs": v2()["inputs"] * 2}, "two input tensors have the name 'text'"),
    "v2, without a name": (v2(name=None), "needs a name"),
    "v2, an endless name": (v2(name="n" * 10**6), "1 to 256 characters"),
    "v2, an unknown datatype": (v2(datatype="FP31"), "datatype 'FP31'"),
    "v2, datatype in lower case": (v2(datatype="bytes"), "datatype 'bytes'"),
    "v2, an endless datatype": (v2(datatype="x" * 10**6), "datatype 'xxx"),
    "v2, a datatype that is a list": (v2(datatype=["BYTES"]), "datatype ['BYTES']"),
    "v2, without a shape": (v2(shape=None), "needs a shape"),
    "v2, a negative shape": (v2(shape=[-2, -1]), "needs a shape"),
    "v2, a shape of bools": (v2(shape=[True, 2]), "needs a shape"),
    "v2, a shape of floats": (v2(shape=[2.0]), "needs a shape"),
    "v2, a shape of 300,000": (v2(shape=[2**30] * 300_000), "at most 8 sizes"),
    "v2, a shape beyond any memory": (v2(shape=[2**62]), "needs a shape"),
    "v2, a shape that lies": (v2(shape=[3]), "has 2 elements, its shape [3] says 3"),
    "v2, no data": (v2(data=None), "needs data"),
    "v2, data that is a text": (v2(data="ab"), "needs data"),
    "v2, texts that are numbers": (v2(data=[1, 2]), "must be texts"),
    "v2, ragged texts": (v2(data=[["a"], ["b", "c"]]), "must be texts"),
    "v2, numbers that are texts": (v2(datatype="INT64"), "holds something else"),
    "v2, whole numbers that are not": (v2(datatype="INT64", data=[1.5, 2]), "holds something else"),
    "v2, truth that is a number": (v2(datatype="BOOL", data=[1, 0]), "holds something else"),
    "v2, ragged numbers": (v2(datatype="FP32", data=[[1], [2, 3]]), "no regular list"),
    "v2, numbers nested 100 deep": (v2(datatype="FP32", data=[orjson.loads("[" * 100 + "1" + "]" * 100)] * 2), "nested more than 64 deep"),
    "v2, a number beyond its type": (v2(datatype="UINT8", data=[1, 256]), "numbers that UINT8 cannot hold"),
    "v2, a number below its type": (v2(datatype="UINT8", data=[1, -1]), "numbers that UINT8 cannot hold"),
    "v2, BF16 in JSON": (v2(datatype="BF16", data=[1, 2]), "send it as a binary tensor"),
    "v2, binary bytes that are not there": (v2(parameters={"binary_data_size": 4}, data=None), "claims 4 binary bytes, 0 are left"),
    "v2, an id that is a number": ({**v2(), "id": 7}, '"id" must be a string'),
    "v2, outputs that are text": ({**v2(), "outputs": "embedding"}, '"outputs" must be a list'),
    "v2, an output without a name": ({**v2(), "outputs": [{}]}, "needs a name"),
    "v2, classification": ({**v2(), "outputs": [{"name": "a", "parameters": {"classification": 1}}]}, "is not served"),
    "v2, a parameter that is an object": ({**v2(), "parameters": {"a": {}}}, '"parameters" must be an object'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_body_that_cannot_be_understood_is_refused_with_a_short_sentence(case: str) -> None:
    value, sentence = BAD[case]
    with pytest.raises(BadInput) as caught:
        infer.parse(JSON_TYPE, value if isinstance(value, bytes) else orjson.dumps(value))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["image/png", "application/x-www-form-urlencoded", "text/html", "json", "x" * 10**4])
def test_other_content_types_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="send application/json, text/plain or"):
        infer.parse(kind, b'{"inputs": "a"}')


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", " application/json ;x", ""])
def test_json_is_known_in_every_spelling(kind: str) -> None:
    assert infer.parse(kind, b'{"inputs": "a"}').call.inputs["text"].texts() == ["a"]


def test_plain_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadInput, match="not UTF-8"):
        infer.parse("text/plain", b"\xff\xfe")


@given(st.sampled_from([JSON_TYPE, "text/plain", "", f"{infer.BINARY_TYPE};json-header-size=9"]), st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(kind: str, body: bytes) -> None:
    try:
        assert infer.parse(kind, body).call.inputs
    except BadInput:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers(2**62, 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON | TEXT,
        "datatype": JSON | st.sampled_from(["BYTES", "FP16", "INT8", "UINT64", "BOOL"]),
        "shape": JSON | st.lists(st.integers(0, 4)),
        "data": JSON | TEXTS | st.lists(st.integers(-300, 300)),
        "parameters": JSON | st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9)}),
    },
)


@given(st.fixed_dictionaries({}, optional={"inputs": JSON | st.lists(JSON | TENSOR, max_size=2), "id": JSON, "outputs": JSON}))
def test_any_json_is_understood_or_refused(fields: dict[str, Any]) -> None:
    try:
        request = infer.parse(JSON_TYPE, orjson.dumps(fields))
    except BadInput:
        return
    assert all(isinstance(tensor, Tensor) for tensor in request.call.inputs.values())


@given(TEXTS)
def test_texts_arrive_as_they_were_sent(texts: list[str]) -> None:
    flat, column = v2(shape=[len(texts)], data=texts), v2(shape=[len(texts), 1], data=[[text] for text in texts])
    for body in ({"inputs": texts}, {**flat, "id": "7"}, column):
        assert infer.parse(JSON_TYPE, orjson.dumps(body)).call.inputs["text"].texts() == texts
    assert infer.parse("text/plain; charset=utf-8", texts[0].encode()).call.inputs["text"].texts() == texts[:1]
    ranked = infer.parse(JSON_TYPE, orjson.dumps({"query": texts[0], "passages": texts})).call.inputs
    assert (ranked["query"].texts(), ranked["passages"].texts()) == (texts[:1], texts)


@given(st.sampled_from([{"inputs": "a"}, v2()]), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_vectors_come_out_as_they_went_in(body: dict[str, Any], texts: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((texts, width)).astype(np.float32)
    result = InferResult((Tensor.of("embedding", vectors),))
    answer = infer.render(infer.parse(JSON_TYPE, orjson.dumps(body)), Task.EMBEDDING, result, "acme/query", "d")
    np.testing.assert_array_equal(as_vectors(orjson.loads(answer.body)), vectors)


def test_the_answer_tells_tokens_truncation_and_model() -> None:
    result = InferResult((Tensor.of("embedding", np.ones((2, 1), np.float32)),), {"tokens": (3, 9), "truncated": (1,)})

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = infer.parse(JSON_TYPE, orjson.dumps(body))
        fields: dict[str, Any] = orjson.loads(infer.render(asked, Task.EMBEDDING, result, "acme/query", "d").body)
        return fields

    plain = {"embeddings": [[1], [1]], "tokens": [3, 9], "truncated": [1], "model": {"name": "acme/query", "digest": "d"}}
    assert answer({"inputs": ["a", "b"]}) == plain
    tensor = answer({**v2(), "id": "7"})
    assert tensor["id"] == "7"
    assert tensor["model_name"] == "acme/query"
    assert tensor["parameters"] == {"model_digest": "d", "tokens": "3,9", "truncated": "1"}
    assert tensor["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [2, 1], "data": [1, 1]}]


def test_each_task_has_its_plain_answer() -> None:
    labels = text_tensor("label", ["late", "lost"])
    label = Tensor("label", "BYTES", labels.data.reshape(1, 2))
    score = Tensor.of("score", np.array([[0.75, 0.25]], np.float32))
    asked = infer.parse(JSON_TYPE, b'{"inputs": "a"}')
    classified = orjson.loads(infer.render(asked, Task.CLASSIFICATION, InferResult((label, score)), "m", "d").body)
    assert classified["predictions"] == [[{"label": "late", "score": 0.75}, {"label": "lost", "score": 0.25}]]
    scores = Tensor.of("score", np.array([0.25, 0.5, 0.125], np.float32))
    ranked = orjson.loads(infer.render(asked, Task.RANKING, InferResult((scores,)), "m", "d").body)
    assert ranked["results"] == [{"index": 1, "score": 0.5}, {"index": 0, "score": 0.25}, {"index": 2, "score": 0.125}]
    written = orjson.loads(infer.render(asked, Task.GENERATION, InferResult((text_tensor("text", ["hi"]),)), "m", "d").body)
    assert written["texts"] == ["hi"]
    with pytest.raises(BadInput, match="send a v2 request"):
        infer.render(asked, Task.TENSORS, InferResult(()), "m", "d")
