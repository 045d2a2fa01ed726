"""What every server of the Open Inference Protocol v2 must do, seen through NVIDIA's own clients and by hand.

Nothing here is particular to flatshare: conftest.py says how to run it on another server. Inputs are made up from the model's metadata.
"""

import asyncio
import gzip
import queue
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.contract.conftest import V2Server

pytestmark = pytest.mark.slow
Arrays = dict[str, NDArray[Any]]
UNKNOWN = "no-such-model"
_ANY_SIZE = 2  # of a dimension that the model leaves open


@pytest.fixture
def http(v2: V2Server) -> Iterator[Any]:
    with triton_http.InferenceServerClient(v2.http, concurrency=4) as client:
        yield client


@pytest.fixture
def grpc(v2: V2Server) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(v2.grpc) as client:
        yield client


@pytest.fixture
async def http_aio(v2: V2Server) -> AsyncIterator[Any]:
    async with triton_http_aio.InferenceServerClient(v2.http) as client:
        yield client


@pytest.fixture
async def grpc_aio(v2: V2Server) -> AsyncIterator[Any]:
    async with triton_grpc_aio.InferenceServerClient(v2.grpc) as client:
        yield client


@pytest.fixture
def inputs(http: Any, v2: V2Server) -> Arrays:
    """Something that the model takes: all inputs that are not optional, or the first if all are, as alternatives are."""
    optional = {item["name"] for item in http.get_model_config(v2.model)["input"] if item.get("optional")}
    listed = http.get_model_metadata(v2.model)["inputs"]
    required = [item for item in listed if item["name"] not in optional]
    return {item["name"]: _made_up(item) for item in required or listed[:1]}


@pytest.fixture
def expected(grpc: Any, v2: V2Server, inputs: Arrays) -> Arrays:
    """What it answers to that."""
    names = [output.name for output in grpc.get_model_metadata(v2.model).outputs]
    answer = grpc.infer(v2.model, _inputs(triton_grpc, inputs))
    return {name: answer.as_numpy(name) for name in names if answer.as_numpy(name) is not None}


def _made_up(item: dict[str, Any]) -> NDArray[Any]:
    shape = [_ANY_SIZE if int(size) < 0 else int(size) for size in item["shape"]]
    if item["datatype"] == "BYTES":
        texts = [f"where is my parcel {index}".encode() for index in range(int(np.prod(shape)))]
        return np.array(texts, object).reshape(shape)
    return np.ones(shape, triton_to_np_dtype(item["datatype"]))


def _inputs(module: Any, arrays: Arrays, *, is_binary: bool = True) -> list[Any]:
    made = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, list(array.shape), _datatype(array))
        tensor.set_data_from_numpy(array, **({"binary_data": is_binary} if module is triton_http else {}))
        made.append(tensor)
    return made


def _datatype(array: NDArray[Any]) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))


def _require_same(answer: Any, expected: Arrays) -> None:
    for name, array in expected.items():
        _require_equal(answer.as_numpy(name), array)


def _require_equal(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    if wanted.dtype == object:  # NVIDIA's client gives texts in JSON as str, binary ones as bytes
        assert [_as_bytes(text) for text in found.reshape(-1)] == [_as_bytes(text) for text in wanted.reshape(-1)]
    else:
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


# Health and metadata.


def test_the_server_is_live_and_ready_and_says_what_it_is(http: Any, grpc: Any) -> None:
    for client in (http, grpc):
        assert client.is_server_live()
        assert client.is_server_ready()
    told = grpc.get_server_metadata()
    metadata = http.get_server_metadata()
    assert metadata["name"] == told.name
    assert metadata["version"] == told.version
    assert set(metadata["extensions"]) == set(told.extensions)


def test_a_models_metadata_and_configuration_agree_on_both_roads(http: Any, grpc: Any, v2: V2Server) -> None:
    assert http.is_model_ready(v2.model)
    assert grpc.is_model_ready(v2.model)
    metadata, told = http.get_model_metadata(v2.model), grpc.get_model_metadata(v2.model)
    assert metadata["name"] == told.name
    for side in ("inputs", "outputs"):
        over_http = [(item["name"], item["datatype"], [int(n) for n in item["shape"]]) for item in metadata[side]]
        assert over_http == [(item.name, item.datatype, list(item.shape)) for item in getattr(told, side)]
        assert over_http
    config, told_config = http.get_model_config(v2.model), grpc.get_model_config(v2.model).config
    assert {item["name"] for item in config["input"]} == {item["name"] for item in metadata["inputs"]}
    assert [item.name for item in told_config.output] == [item["name"] for item in config["output"]]


def test_an_unknown_model_is_not_ready(http: Any, grpc: Any) -> None:
    assert not http.is_model_ready(UNKNOWN)
    assert not grpc.is_model_ready(UNKNOWN)


# Inference.


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("wants_binary", [True, False])
def test_http_takes_and_gives_tensors_as_json_and_as_bytes(
    http: Any, v2: V2Server, inputs: Arrays, expected: Arrays, *, is_binary: bool, wants_binary: bool
) -> None:
    outputs = [triton_http.InferRequestedOutput(name, binary_data=wants_binary) for name in expected]
    answer = http.infer(v2.model, _inputs(triton_http, inputs, is_binary=is_binary), outputs=outputs)
    _require_same(answer, expected)
    assert all(("parameters" in item) == wants_binary for item in answer.get_response()["outputs"])


def test_without_named_outputs_all_are_given(http: Any, v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    _require_same(http.infer(v2.model, _inputs(triton_http, inputs)), expected)


def test_a_request_keeps_its_id(http: Any, grpc: Any, v2: V2Server, inputs: Arrays) -> None:
    assert http.infer(v2.model, _inputs(triton_http, inputs), request_id="a-17").get_response()["id"] == "a-17"
    assert grpc.infer(v2.model, _inputs(triton_grpc, inputs), request_id="a-18").get_response().id == "a-18"


def test_only_the_outputs_asked_for_are_given(http: Any, grpc: Any, v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    name = next(iter(expected))
    over_http = http.infer(v2.model, _inputs(triton_http, inputs), outputs=[triton_http.InferRequestedOutput(name)])
    assert [item["name"] for item in over_http.get_response()["outputs"]] == [name]
    over_grpc = grpc.infer(v2.model, _inputs(triton_grpc, inputs), outputs=[triton_grpc.InferRequestedOutput(name)])
    assert [item.name for item in over_grpc.get_response().outputs] == [name]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed_both_ways(http: Any, grpc: Any, v2: V2Server, inputs: Arrays, expected: Arrays, algorithm: str) -> None:
    both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    for is_binary in (True, False):
        _require_same(http.infer(v2.model, _inputs(triton_http, inputs, is_binary=is_binary), **both), expected)
    _require_same(grpc.infer(v2.model, _inputs(triton_grpc, inputs), compression_algorithm=algorithm), expected)


def test_calls_in_the_background_are_answered(http: Any, grpc: Any, v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    waiting = [http.async_infer(v2.model, _inputs(triton_http, inputs)) for _ in range(8)]
    for call in waiting:
        _require_same(call.get_result(timeout=30), expected)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(8):
        grpc.async_infer(v2.model, _inputs(triton_grpc, inputs), callback=lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=30)
        assert error is None
        _require_same(result, expected)


async def test_the_clients_for_asyncio_are_answered(http_aio: Any, grpc_aio: Any, v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    assert await http_aio.is_server_ready()
    assert await grpc_aio.is_server_ready()
    over_http = [http_aio.infer(v2.model, _inputs(triton_http, inputs)) for _ in range(8)]
    over_grpc = [grpc_aio.infer(v2.model, _inputs(triton_grpc, inputs)) for _ in range(8)]
    for answer in await asyncio.gather(*over_http, *over_grpc):
        _require_same(answer, expected)


def test_a_stream_answers_each_request_in_turn_and_outlives_a_mistake(grpc: Any, v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(callback=lambda result, error: answers.put((result, error)))
    try:
        grpc.async_stream_infer(v2.model, _inputs(triton_grpc, inputs), request_id="first")
        grpc.async_stream_infer(UNKNOWN, _inputs(triton_grpc, inputs), request_id="second")
        grpc.async_stream_infer(v2.model, _inputs(triton_grpc, inputs), request_id="third")
        got = [answers.get(timeout=30) for _ in range(3)]
    finally:
        grpc.stop_stream()
    assert sorted(result.get_response().id for result, error in got if error is None) == ["first", "third"]
    assert [error for _, error in got if error is not None]
    for result, error in got:
        if error is None:
            _require_same(result, expected)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a stream brought: numbers with whether each was the last, errors, and answers without tensors."""

    numbers: list[tuple[int, bytes, bool]]
    errors: list[str]
    empty: list[bool]


def _count(grpc: Any, model: str, count: int, *, until: int, has_empty_final: bool = False) -> Counted:
    """Ask the decoupled model over a stream, and hear so many answers."""
    if not model:
        pytest.skip("the server that the environment names has no decoupled model")
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    counted = Counted([], [], [])
    grpc.start_stream(callback=lambda result, error: answers.put((result, error)))
    try:
        inputs = _inputs(triton_grpc, {"count": np.array([count], np.int32)})
        grpc.async_stream_infer(model, inputs, request_id="c", enable_empty_final_response=has_empty_final)
        for _ in range(until):
            result, error = answers.get(timeout=30)
            if error is not None:
                counted.errors.append(error.message())
                continue
            response = result.get_response()
            is_final = response.parameters["triton_final_response"].bool_param
            assert response.id == "c"
            if response.outputs:
                counted.numbers.append((int(result.as_numpy("number")[0]), result.as_numpy("text")[0], is_final))
            else:
                counted.empty.append(is_final)
    finally:
        grpc.stop_stream()
    return counted


def test_a_decoupled_model_answers_as_often_as_it_likes(grpc: Any, v2: V2Server) -> None:
    found = _count(grpc, v2.counter, 3, until=3)
    assert found == Counted([(n, b"%d \xff" % n, False) for n in range(3)], [], [])


def test_the_end_of_a_decoupled_models_answers_is_told_to_those_who_ask_for_it(grpc: Any, v2: V2Server) -> None:
    assert _count(grpc, v2.counter, 2, until=3, has_empty_final=True).empty == [True]
    assert _count(grpc, v2.counter, 0, until=1, has_empty_final=True) == Counted([], [], [True])


def test_an_error_of_a_decoupled_model_comes_after_what_it_had_answered(grpc: Any, v2: V2Server) -> None:
    found = _count(grpc, v2.counter, -2, until=3)
    assert [number for number, _, _ in found.numbers] == [0, 1]
    [error] = found.errors
    assert "below zero" in error


def test_what_follows_a_decoupled_step_of_an_ensemble_runs_for_each_of_its_answers(grpc: Any, v2: V2Server) -> None:
    found = _count(grpc, v2.pipeline, 3, until=3)
    assert [(number, text) for number, text, _ in found.numbers] == [(-n, b"%d \xff" % n) for n in range(3)]
    assert _count(grpc, v2.pipeline, 0, until=1, has_empty_final=True) == Counted([], [], [True])


def test_typed_contents_are_taken_over_grpc(v2: V2Server, grpc: Any, inputs: Arrays, expected: Arrays) -> None:
    fields = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT64": "int64_contents", "INT32": "int_contents"}
    request = service_pb2.ModelInferRequest(model_name=v2.model)
    for name, array in inputs.items():
        if _datatype(array) not in fields:
            pytest.skip(f"the model takes {_datatype(array)}")
        tensor = request.inputs.add(name=name, datatype=_datatype(array), shape=array.shape)
        getattr(tensor.contents, fields[_datatype(array)]).extend(array.reshape(-1).tolist())
    answer = triton_grpc.InferResult(grpc._client_stub.ModelInfer(request))
    _require_same(answer, expected)


# By hand, as curl would.


def _post(v2: V2Server, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection(v2.http, timeout=30)
    try:
        connection.request("POST", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _json_request(inputs: Arrays) -> dict[str, Any]:
    listed = []
    for name, array in inputs.items():
        data = [item.decode() for item in array.reshape(-1)] if array.dtype == object else array.reshape(-1).tolist()
        listed.append({"name": name, "datatype": _datatype(array), "shape": list(array.shape), "data": data})
    return {"inputs": listed}


def _infer_path(v2: V2Server) -> str:
    return f"/v2/models/{quote(v2.model)}/infer"


def test_plain_json_is_enough(v2: V2Server, inputs: Arrays, expected: Arrays) -> None:
    status, _, body = _post(v2, _infer_path(v2), orjson.dumps(_json_request(inputs)))
    assert status == 200
    answer = orjson.loads(body)
    assert answer["model_name"] == v2.model
    for item in answer["outputs"]:
        wanted = expected[item["name"]]
        found = np.array([text.encode() for text in item["data"]], object) if wanted.dtype == object else np.array(item["data"])
        _require_equal(found.reshape(item["shape"]), wanted)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_compressed_body_is_understood_by_its_header(v2: V2Server, inputs: Arrays, pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    status, _, _ = _post(v2, _infer_path(v2), pack(orjson.dumps(_json_request(inputs))), {"Content-Encoding": encoding})
    assert status == 200


def test_binary_tensors_are_announced_by_the_length_of_the_json(v2: V2Server, inputs: Arrays) -> None:
    request = _json_request(inputs) | {"parameters": {"binary_data_output": True}}
    status, headers, body = _post(v2, _infer_path(v2), orjson.dumps(request))
    assert status == 200
    head = orjson.loads(body[: int(headers["inference-header-content-length"])])
    sizes = [item["parameters"]["binary_data_size"] for item in head["outputs"]]
    assert int(headers["inference-header-content-length"]) + sum(sizes) == len(body)


# Mistakes.


def _refused(client: Any, call: Callable[[Any], object]) -> str:
    """The status of the call, which must fail; and the server must go on."""
    with pytest.raises(InferenceServerException) as failure:
        call(client)
    assert failure.value.message(), "an error needs a sentence"
    assert client.is_server_live()
    return str(failure.value.status())


def test_an_unknown_model_is_not_found(http: Any, grpc: Any, inputs: Arrays) -> None:
    assert _refused(http, lambda c: c.infer(UNKNOWN, _inputs(triton_http, inputs))) == "404"
    assert _refused(grpc, lambda c: c.infer(UNKNOWN, _inputs(triton_grpc, inputs))) == "StatusCode.NOT_FOUND"
    assert _refused(grpc, lambda c: c.get_model_metadata(UNKNOWN)) == "StatusCode.NOT_FOUND"


def test_an_error_over_http_is_a_json_object_with_a_sentence(v2: V2Server) -> None:
    status, _, body = _post(v2, f"/v2/models/{UNKNOWN}/infer", b'{"inputs": []}')
    assert status >= 400
    assert isinstance(orjson.loads(body)["error"], str)


Breaking = Callable[[Arrays], Arrays]
BROKEN: dict[str, Breaking] = {
    "an input of another name": lambda arrays: {f"{name}-x": array for name, array in arrays.items()},
    "no input": lambda _: {},
    "one input too many": lambda arrays: arrays | {"extra": np.zeros([1], np.float32)},
    "another datatype": lambda arrays: {name: np.zeros(array.shape, np.bool_) for name, array in arrays.items()},
    "too many dimensions": lambda arrays: {name: array.reshape((1, 1, *array.shape, 1, 1)) for name, array in arrays.items()},
}


@pytest.mark.parametrize("case", BROKEN)
def test_inputs_that_the_model_does_not_take_are_the_callers_mistake(
    http: Any, grpc: Any, v2: V2Server, inputs: Arrays, expected: Arrays, case: str
) -> None:
    broken = BROKEN[case](inputs)
    assert _refused(http, lambda c: c.infer(v2.model, _inputs(triton_http, broken))) == "400"
    assert _refused(grpc, lambda c: c.infer(v2.model, _inputs(triton_grpc, broken))) == "StatusCode.INVALID_ARGUMENT"
    _require_same(http.infer(v2.model, _inputs(triton_http, inputs)), expected)


def test_an_output_that_the_model_does_not_give_is_the_callers_mistake(http: Any, grpc: Any, v2: V2Server, inputs: Arrays) -> None:
    over_http = [triton_http.InferRequestedOutput("nothing")]
    over_grpc = [triton_grpc.InferRequestedOutput("nothing")]
    assert _refused(http, lambda c: c.infer(v2.model, _inputs(triton_http, inputs), outputs=over_http)) == "400"
    status = _refused(grpc, lambda c: c.infer(v2.model, _inputs(triton_grpc, inputs), outputs=over_grpc))
    assert status == "StatusCode.INVALID_ARGUMENT"


# Statistics and the repository.


def test_statistics_count_successes(http: Any, grpc: Any, v2: V2Server, inputs: Arrays) -> None:
    def count() -> int:
        return int(http.get_inference_statistics(v2.model)["model_stats"][0]["inference_stats"]["success"]["count"])

    before = count()
    for _ in range(3):
        http.infer(v2.model, _inputs(triton_http, inputs))
    assert count() == before + 3
    [told] = grpc.get_inference_statistics(v2.model).model_stats
    assert told.inference_stats.success.count == before + 3
    assert told.inference_stats.compute_infer.ns > 0


def test_the_index_lists_the_model_as_ready(http: Any, grpc: Any, v2: V2Server) -> None:
    assert http.is_model_ready(v2.model)
    assert (v2.model, "READY") in [(item["name"], item.get("state")) for item in http.get_model_repository_index()]
    assert (v2.model, "READY") in [(item.name, item.state) for item in grpc.get_model_repository_index().models]
