"""Protobuf messages ⇄ JSON with binary tensors: nothing is lost, and nothing that is wrong comes through as something else."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput, FlatshareError, ModelFailed, Unsupported
from flatshare.core.signature import Task
from flatshare.core.tensor import BYTES, Tensor
from flatshare.wire import infer, v2, v2_grpc
from flatshare.wire.v2_schema import MESSAGES
from tests.wire.test_v2 import NUMBERS, require_equal, tensors

FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False))


def request(*inputs: Tensor, is_raw: bool = True, **fields: Any) -> Any:
    """A ModelInferRequest."""
    message = MESSAGES["ModelInferRequest"](model_name="m", **fields)
    for tensor in inputs:
        item = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if is_raw:
            message.raw_input_contents.append(v2.to_bytes(tensor))
        else:
            getattr(item.contents, FIELDS[tensor.datatype]).extend(tensor.data.reshape(-1).tolist())
    return message


def call_of(message: Any) -> InferCall:
    """What an instance makes of it, once the message has been on the wire."""
    arrived = MESSAGES["ModelInferRequest"].FromString(message.SerializeToString())
    return wire_call_of(arrived).call


def wire_call_of(message: Any) -> infer.WireCall:
    parsed = v2_grpc.parse(message)
    return infer.parse(infer.binary_content_type(parsed.json_bytes).decode(), parsed.body)


@given(tensors([*NUMBERS, BYTES]), tensors([*NUMBERS, BYTES]))
def test_raw_tensors_arrive_as_they_were_sent(one: Tensor, other: Tensor) -> None:
    other = Tensor("y", other.datatype, other.data)
    call = call_of(request(one, other, id="7"))
    require_equal(call.inputs["x"], one)
    require_equal(call.inputs["y"], other)
    assert call.id == "7"


@given(tensors(sorted(FIELDS)))
def test_typed_contents_arrive_as_they_were_sent(tensor: Tensor) -> None:
    require_equal(call_of(request(tensor, is_raw=False)).inputs["x"], tensor)


@given(st.dictionaries(st.text(min_size=1, max_size=5), SCALARS, max_size=4))
def test_parameters_arrive_as_they_were_sent(parameters: dict[str, Any]) -> None:
    message = request(Tensor.of("x", np.zeros(1, np.float32)))
    v2_grpc.set_scalars(message.parameters, parameters)
    assert call_of(message).parameters == parameters
    assert v2_grpc.scalars(message.parameters) == parameters


@given(tensors([*NUMBERS, BYTES]), st.dictionaries(st.text(min_size=1, max_size=5), SCALARS, max_size=3))
def test_an_answer_arrives_as_the_model_gave_it(tensor: Tensor, remarks: dict[str, Any]) -> None:
    asked = wire_call_of(request(Tensor.of("q", np.zeros(1, np.float32)), id="a"))
    answer = infer.render(asked, Task.TENSORS, InferResult((tensor,), remarks), "m", "d")
    sent = v2_grpc.render(answer.body, answer.content_type, "m").SerializeToString()
    response = MESSAGES["ModelInferResponse"].FromString(sent)
    [output] = response.outputs
    require_equal(v2.from_bytes(output.name, output.datatype, tuple(output.shape), response.raw_output_contents[0]), tensor)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "a")
    assert v2_grpc.scalars(response.parameters) == {"model_digest": "d", **remarks}


def test_outputs_are_asked_for_by_name_and_always_as_bytes() -> None:
    message = request(Tensor.of("x", np.zeros(1, np.float32)))
    v2_grpc.set_scalars(message.outputs.add(name="b").parameters, {"binary_data": False})
    message.outputs.add(name="a")
    asked = wire_call_of(message)
    assert asked.call.wanted == ("b", "a")
    assert asked.request is not None
    assert asked.request.binary.has("a")
    assert asked.request.binary.has("b")


def _typed(datatype: str, field: str, *values: object) -> Any:
    message = MESSAGES["ModelInferRequest"](model_name="m")
    item = message.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    getattr(item.contents, field).extend(values)
    return message


def _mixed() -> Any:
    message = request(Tensor.of("x", np.zeros(1, np.float32)))
    message.inputs[0].contents.fp32_contents.append(1.0)
    return message


def _too_few() -> Any:
    message = request(Tensor.of("x", np.zeros(1, np.float32)))
    message.inputs.add(name="y", datatype="FP32", shape=[1])
    return message


def _shared() -> Any:
    message = MESSAGES["ModelInferRequest"](model_name="m")
    v2_grpc.set_scalars(message.inputs.add(name="x", datatype="FP32", shape=[1]).parameters, {"shared_memory_region": "r"})
    return message


FLAG = Tensor("x", "BOOL", np.zeros(1, np.bool_))
WRONG: dict[str, tuple[Any, type[FlatshareError], str]] = {
    "fewer raw entries than inputs": (_too_few(), BadInput, "1 entries for 2 inputs"),
    "raw and typed at once": (_mixed(), BadInput, "beside raw_input_contents"),
    "typed FP16": (_typed("FP16", "fp32_contents", 1.0), BadInput, "raw_input_contents"),
    "typed BF16": (_typed("BF16", "fp32_contents", 1.0), BadInput, "raw_input_contents"),
    "contents of another type": (_typed("INT64", "fp32_contents", 1.0), BadInput, "int64_contents, not in fp32_contents"),
    "a number that the datatype cannot hold": (_typed("INT8", "int_contents", 300), BadInput, "INT8 cannot hold"),
    "shared memory": (_shared(), Unsupported, "shared memory"),
    "an unknown datatype": (_typed("COMPLEX", "fp32_contents", 1.0), BadInput, "known are"),
    "no datatype": (_typed("", "fp32_contents", 1.0), BadInput, "known are"),
    "no name": (request(Tensor("", "FP32", np.zeros(1, np.float32))), BadInput, "needs a name"),
    "one name twice": (request(FLAG, FLAG), BadInput, "two input tensors"),
    "a shape that says more": (_typed("FP32", "fp32_contents"), BadInput, ""),
}
WRONG["a shape that says more"][0].inputs[0].shape[:] = [3]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_message_is_said(case: str) -> None:
    message, kind, sentence = WRONG[case]
    with pytest.raises(kind) as caught:
        call_of(message)
    assert sentence in str(caught.value)


@given(st.binary(max_size=60), st.booleans(), st.integers(0, 60))
def test_an_answer_that_is_none_is_the_models_failure(body: bytes, is_binary: bool, size: int) -> None:  # drawn by hypothesis
    content_type = infer.binary_content_type(size) if is_binary else b"application/json"
    with pytest.raises(ModelFailed):
        v2_grpc.render(body, content_type, "m")


@pytest.mark.parametrize("fields", [{}, {"outputs": 3}, {"outputs": [{}]}, {"outputs": [{"name": "a", "parameters": {}}]}, []])
def test_an_answer_without_binary_tensors_is_the_models_failure(fields: object) -> None:
    with pytest.raises(ModelFailed):
        v2_grpc.render(orjson.dumps(fields), b"application/json", "m")
