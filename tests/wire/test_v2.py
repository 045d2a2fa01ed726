"""v2's tensors, in JSON and in bytes."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flatshare.core.call import InferResult
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import BYTES, DTYPES, Tensor
from flatshare.wire import infer, v2

NUMBERS = sorted(DTYPES.keys() - {BYTES})
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str]) -> Tensor:
    datatype, shape = draw(st.sampled_from(datatypes)), draw(SHAPES)
    if datatype != BYTES:
        values = st.floats(-1000, 1000, width=16) if DTYPES[datatype].kind == "f" else None
        return Tensor("x", datatype, draw(arrays.arrays(DTYPES[datatype], shape, elements=values)))
    data = np.empty(int(np.prod(shape)), object)
    data[:] = [draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)).encode() for _ in data]
    return Tensor("x", datatype, data.reshape(shape))


def binary_body(tensor: Tensor, **fields: Any) -> tuple[str, bytes]:
    raw = v2.to_bytes(tensor)
    item = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [item], **fields})
    return f"{infer.BINARY_TYPE};json-header-size={len(head)}", head + raw


def require_equal(found: Tensor, sent: Tensor) -> None:
    assert (found.name, found.datatype, found.shape) == (sent.name, sent.datatype, sent.shape)
    np.testing.assert_array_equal(found.data, sent.data)


@given(tensors([*NUMBERS, BYTES]))
def test_a_binary_tensor_arrives_as_it_was_sent_and_goes_back_so(tensor: Tensor) -> None:
    asked = infer.parse(*binary_body(tensor, parameters={"binary_data_output": True}))
    require_equal(asked.call.inputs["x"], tensor)
    answer = infer.render(asked, Task.TENSORS, InferResult((tensor,)), "m", "d")
    length = int(answer.content_type.rpartition(b"=")[2])
    head = orjson.loads(answer.body[:length])
    again = v2.from_bytes("x", head["outputs"][0]["datatype"], tuple(head["outputs"][0]["shape"]), answer.body[length:])
    require_equal(again, tensor)


@given(tensors([name for name in [*NUMBERS, BYTES] if name != "BF16"]), st.booleans())
def test_a_json_tensor_arrives_as_it_was_sent_flat_or_nested(tensor: Tensor, is_nested: bool) -> None:  # drawn by hypothesis
    texts = np.array([item.decode() for item in tensor.data.reshape(-1)], object) if tensor.datatype == BYTES else tensor.data
    data = texts.reshape(tensor.shape).tolist() if is_nested and tensor.shape else texts.reshape(-1).tolist()
    item = {"name": "x", "datatype": tensor.datatype, "shape": tensor.shape, "data": data}
    asked = infer.parse("application/json", orjson.dumps({"inputs": [item]}))
    require_equal(asked.call.inputs["x"], tensor)
    answer = orjson.loads(infer.render(asked, Task.TENSORS, InferResult((tensor,)), "m", "d").body)
    require_equal(infer.parse("application/json", orjson.dumps({"inputs": answer["outputs"]})).call.inputs["x"], tensor)


def test_the_largest_integers_beside_small_ones_stay_what_they_are() -> None:
    body = orjson.dumps({"inputs": [{"name": "x", "datatype": "UINT64", "shape": [2], "data": [0, 2**64 - 1]}]})
    assert infer.parse("application/json", body).call.inputs["x"].data.tolist() == [0, 2**64 - 1]


def test_outputs_are_those_asked_for_in_that_order_and_each_in_its_form() -> None:
    result = InferResult(
        (Tensor.of("a", np.zeros(2, np.float32)), Tensor.of("b", np.ones(2, np.int8)), Tensor.of("c", np.ones(1, np.int8)))
    )
    tensor = Tensor.of("x", np.zeros(1, np.float32))
    outputs = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    asked = infer.parse(*binary_body(tensor, outputs=outputs))
    answer = infer.render(asked, Task.TENSORS, result, "m", "d")
    length = int(answer.content_type.rpartition(b"=")[2])
    shown = orjson.loads(answer.body[:length])["outputs"]
    assert shown == [
        {"name": "b", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}},
        {"name": "a", "datatype": "FP32", "shape": [2], "data": [0.0, 0.0]},
    ]
    assert answer.body[length:] == b"\x01\x01"


def test_an_output_that_the_model_does_not_have_is_named_with_those_it_has() -> None:
    asked = infer.parse(*binary_body(Tensor.of("x", np.zeros(1, np.float32)), outputs=[{"name": "y"}]))
    with pytest.raises(BadInput, match="no output 'y': it gives a"):
        infer.render(asked, Task.TENSORS, InferResult((Tensor.of("a", np.zeros(1, np.float32)),)), "m", "d")


@pytest.mark.parametrize(
    ("size", "raw", "sentence"),
    [
        (3, b"123", "has 3 bytes, FP32 [1] takes 4"),
        (4, b"12345", "1 bytes lie behind"),
        (9, b"1234", "claims 9 binary bytes, 4 are left"),
        (-1, b"1234", "claims -1 binary bytes"),
        (True, b"1234", "claims True binary bytes"),
    ],
)
def test_binary_tensors_whose_sizes_lie_are_refused(size: int, raw: bytes, sentence: str) -> None:
    item = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": size}}
    head = orjson.dumps({"inputs": [item]})
    with pytest.raises(BadInput) as caught:
        infer.parse(f"{infer.BINARY_TYPE};json-header-size={len(head)}", head + raw)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("raw", [b"\x01\x00\x00", b"\x09\x00\x00\x00a", b"\x01\x00\x00\x00ab", b"\xff\xff\xff\xffa", b""])
def test_binary_texts_whose_lengths_lie_are_refused(raw: bytes) -> None:
    with pytest.raises(BadInput, match="are not 1 texts"):
        v2.from_bytes("x", BYTES, (1,), raw)


@pytest.mark.parametrize("kind", ["", ";json-header-size", ";json-header-size=x", ";json-header-size=99", ";json-header-size=-1"])
def test_a_header_size_that_is_missing_or_lies_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="json-header-size=N"):
        infer.parse(infer.BINARY_TYPE + kind, b"{}")
