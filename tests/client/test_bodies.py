"""Texts and tensors on the caller's side."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.client import bodies
from flatshare.client.answers import Embeddings
from flatshare.client.bodies import Answer
from flatshare.core.call import InferResult
from flatshare.core.errors import BadInput, CallFailed
from flatshare.core.settings import MAX_BODY_BYTES
from flatshare.core.signature import Task
from flatshare.core.tensor import Tensor
from flatshare.wire import infer


@given(st.lists(st.text(max_size=20), min_size=1, max_size=50), st.integers(1, 9))
def test_batches_hold_every_text_once_and_in_order(texts: list[str], most: int) -> None:
    found = list(bodies.batches(texts, most))
    assert [text for batch in found for text in batch] == texts
    assert all(0 < len(batch) <= most for batch in found)


def test_batches_fit_the_contracts_body() -> None:
    texts = ["x" * 2_000_000] * 5
    found = [bodies.texts_body(batch, {}) for batch in bodies.batches(texts, 64)]
    assert len(found) == 3
    assert all(len(body.payload) < MAX_BODY_BYTES for body in found)


@pytest.mark.parametrize(("texts", "sentence"), [([], "at least one text"), (["a", "x" * 6_000_000], "text 1 has 6000000 bytes")])
def test_what_no_call_can_take_is_refused_before_it_is_sent(texts: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        list(bodies.batches(texts, 64))


def test_indices_of_joined_answers_count_through() -> None:
    parts = [Embeddings(np.full((2, 3), n, np.float32), (1, 2), (1,), "d") for n in range(2)]
    whole = bodies.joined(parts)
    assert (whole.vectors.shape, whole.tokens, whole.truncated) == ((4, 3), (1, 2, 1, 2), (1, 3))


def test_vectors_of_two_models_are_not_joined() -> None:
    with pytest.raises(CallFailed, match="replaced between two batches"):
        bodies.joined([Embeddings(np.zeros((1, 1), np.float32), (), (), digest) for digest in "ab"])


def test_tensors_survive_the_way_there_and_back() -> None:
    ids, texts = np.arange(6, dtype=np.int64).reshape(2, 3), ["über", ""]
    body = bodies.tensors_body({"ids": ids, "text": texts}, ["out"], {"temperature": 0.5})
    asked = infer.parse(body.content_type, body.payload)
    assert asked.call.wanted == ("out",)
    assert asked.call.parameters == {"temperature": 0.5}
    assert asked.call.inputs["text"].texts() == texts
    result = InferResult((Tensor.of("out", asked.call.inputs["ids"].data * 2),))
    answer = infer.render(asked, Task.TENSORS, result, "m", "d")
    outputs = bodies.outputs_of(Answer(answer.body, answer.content_type.decode(), "d"))
    np.testing.assert_array_equal(outputs["out"], ids * 2)


def test_a_classifiers_and_a_rankers_answers_are_typed() -> None:
    labels = bodies.labels_of(Answer(orjson.dumps({"predictions": [[{"label": "refund", "score": 0.9}]]}), "", ""))
    assert (labels[0][0].label, labels[0][0].score) == ("refund", 0.9)
    ranks = bodies.ranks_of(Answer(orjson.dumps({"results": [{"index": 1, "score": 2.5}]}), "", ""))
    assert (ranks[0].index, ranks[0].score) == (1, 2.5)


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"outputs": []}'])
def test_an_answer_of_another_form_is_named_so(body: bytes) -> None:
    with pytest.raises(CallFailed):
        bodies.embeddings_of(Answer(body, "application/json", ""))
