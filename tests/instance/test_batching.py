"""Several calls as one: each gets its own rows and remarks back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import InferCall, InferResult
from flatshare.core.signature import Signature, Task
from flatshare.core.tensor import Tensor
from flatshare.instance.batching import likeness, merged, split
from tests.calls import text_call

EMBEDDING = Signature(Task.EMBEDDING, "fake", (), ())
COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(COUNTS)
def test_rows_and_remarks_go_back_to_whom_they_belong(counts: list[int]) -> None:
    calls = [text_call(*(f"text {caller} {row}" for row in range(count))) for caller, count in enumerate(counts)]
    texts = merged(calls).inputs["text"].texts()
    rows = np.arange(len(texts), dtype=np.float32).reshape(-1, 1)
    cut = tuple(range(0, len(texts), 2))
    result = InferResult((Tensor.of("embedding", rows),), {"tokens": tuple(range(len(texts))), "truncated": cut, "note": "x"})
    begin = 0
    for caller, (count, part) in enumerate(zip(counts, split(result, counts), strict=True)):
        assert [texts[int(row[0])] for row in part.output("embedding").data] == calls[caller].inputs["text"].texts()
        assert part.parameters["tokens"] == tuple(range(begin, begin + count))
        assert part.parameters["truncated"] == tuple(index - begin for index in cut if begin <= index < begin + count)
        assert part.parameters["note"] == "x"
        begin += count


def test_an_answer_that_has_not_a_row_for_each_text_is_not_split() -> None:
    with pytest.raises(ValueError, match="3 texts"):
        split(InferResult((Tensor.of("embedding", np.zeros((2, 4), np.float32)),)), [1, 2])


def test_only_calls_that_ask_for_the_same_are_alike() -> None:
    call = text_call("a")
    other = InferCall(call.inputs, {"normalize": True})
    assert likeness(EMBEDDING, call) == likeness(EMBEDDING, text_call("b", "c"))
    assert likeness(EMBEDDING, call) != likeness(EMBEDDING, other)
    assert likeness(EMBEDDING, InferCall(call.inputs, wanted=("embedding",))) != likeness(EMBEDDING, call)


def test_what_depends_on_its_neighbours_runs_alone() -> None:
    assert likeness(Signature(Task.GENERATION, "fake", (), ()), text_call("a")) is None
    ids = InferCall({"input_ids": Tensor.of("input_ids", np.zeros((1, 4), np.int64))})
    assert likeness(EMBEDDING, ids) is None
