"""Every field of an inference missing, wrong or too large, on every road: InvokeEndpoint, v2 over HTTP, v2 over gRPC.

One table: what is wrong, how it looks in JSON and in a message, and a part of the sentence that the caller must hear on each road.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import pytest

from flatshare.bench.server import PlainCaller
from flatshare.core.call import Scalar
from flatshare.wire import v2_grpc
from flatshare.wire.v2_schema import MESSAGES
from tests.e2e.checkpoints import TEXT
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import Endpoint

pytestmark = pytest.mark.slow
HEALTHY = TENANTS[0]
NAME = f"embeddings/{HEALTHY}"
Fields = dict[str, Any]
_MANY = 5000  # texts: more than a call may have


@dataclass(frozen=True, slots=True)
class Case:
    """`json` and `message` break a good request; None: this road cannot say that."""

    sentence: str
    json: Callable[[Fields], object] | None = None
    message: Callable[[Any], object] | None = None


def _set(field: str, value: object) -> Callable[[Fields], object]:
    """In the request, or with `input.` in its one tensor."""
    return lambda request: (request["inputs"][0] if field.startswith("input.") else request).__setitem__(
        field.removeprefix("input."), value
    )


def _drop(field: str) -> Callable[[Fields], object]:
    return lambda request: (request["inputs"][0] if field.startswith("input.") else request).pop(field.removeprefix("input."))


def _told(field: str, value: object) -> Callable[[Any], object]:
    return lambda message: setattr(message.inputs[0] if field.startswith("input.") else message, field.removeprefix("input."), value)


def _shaped(*shape: int) -> Callable[[Any], object]:
    return lambda message: message.inputs[0].shape.__setitem__(slice(None), shape)


def _texts(*texts: bytes) -> Callable[[Any], object]:
    def change(message: Any) -> None:
        message.inputs[0].shape[:] = [len(texts)]
        message.inputs[0].contents.bytes_contents[:] = texts

    return change


def _twice(request: Any) -> None:
    if isinstance(request, dict):
        request["inputs"] *= 2
    else:
        request.inputs.append(request.inputs[0])


def _numbers(message: Any) -> None:
    message.inputs[0].datatype = "FP32"
    del message.inputs[0].contents.bytes_contents[:]
    message.inputs[0].contents.fp32_contents.append(1.0)


CASES: dict[str, Case] = {
    "no inputs": Case("inputs", _drop("inputs")),
    "inputs that are null": Case("inputs", _set("inputs", None)),
    "inputs that are an object": Case("inputs", _set("inputs", {"name": "text"})),
    "inputs that are nothing": Case("", _set("inputs", []), lambda message: message.ClearField("inputs")),
    "an input that is a number": Case("inputs", lambda request: request["inputs"].append(3)),
    "one input twice": Case("two input tensors have the name 'text'", _twice, _twice),
    "an id that is a number": Case('"id" must be a string', _set("id", 7)),
    "no name": Case("needs a name", _drop("input.name"), _told("input.name", "")),
    "a name that is a number": Case("needs a name", _set("input.name", 3)),
    "a name of a megabyte": Case("needs a name", _set("input.name", "n" * 2**20), _told("input.name", "n" * 2**20)),
    "an unknown name": Case("no input 'other'", _set("input.name", "other"), _told("input.name", "other")),
    "no datatype": Case("known are", _drop("input.datatype"), _told("input.datatype", "")),
    "an unknown datatype": Case("known are", _set("input.datatype", "STRING"), _told("input.datatype", "STRING")),
    "a datatype that is a list": Case("known are", _set("input.datatype", ["BYTES"])),
    "another datatype": Case("no input 'text' FP32", lambda r: r["inputs"][0].update(datatype="FP32", data=[1.0]), _numbers),
    "no shape": Case("", _drop("input.shape")),
    "a shape of texts": Case("needs a shape", _set("input.shape", ["1"])),
    "a negative shape": Case("needs a shape", _set("input.shape", [-1]), _shaped(-1)),
    "a shape of fractions": Case("needs a shape", _set("input.shape", [1.5])),
    "a shape of a thousand dimensions": Case("needs a shape", _set("input.shape", [1] * 1000), _shaped(*[1] * 1000)),
    "a shape beyond all numbers": Case("needs a shape", _set("input.shape", [2**62]), _shaped(2**62)),
    "a shape that says more than there is": Case("", _set("input.shape", [2]), _shaped(2)),
    "a shape that says less": Case(
        "", lambda r: r["inputs"][0].update(shape=[1], data=["a", "b"]), lambda m: (_texts(b"a", b"b")(m), _shaped(1)(m))
    ),
    "a shape with a dimension too many": Case("no input 'text'", _set("input.shape", [1, 1, 1]), _shaped(1, 1, 1)),
    "no data": Case("needs data", _drop("input.data")),
    "data that is a text": Case("needs data", _set("input.data", "hello")),
    "data of numbers": Case("its data must be texts", _set("input.data", [3])),
    "ragged data": Case("", lambda r: r["inputs"][0].update(shape=[3], data=[["a", "b"], ["c"]])),
    "no text at all": Case("", lambda r: r["inputs"][0].update(shape=[0], data=[]), _texts()),
    "too many texts": Case("split the call", lambda r: r["inputs"][0].update(shape=[_MANY], data=["a"] * _MANY), _texts(*[b"a"] * _MANY)),
    "bytes that are not UTF-8": Case("not UTF-8", None, _texts(b"\xff\xfe")),
    "half a surrogate pair": Case("", lambda r: r["inputs"][0].update(data=["HALF"])),
    "contents in the wrong field": Case("bytes_contents", None, lambda m: m.inputs[0].contents.fp32_contents.append(1.0)),
    "raw contents beside typed ones": Case("beside raw_input_contents", None, lambda m: m.raw_input_contents.append(b"\0\0\0\0")),
    "raw contents that are cut off": Case(
        "are not 1 texts", None, lambda m: (m.inputs[0].ClearField("contents"), m.raw_input_contents.append(b"\x09\0\0\0a"))
    ),
    "more raw contents than inputs": Case("2 entries for 1 inputs", None, lambda m: m.raw_input_contents.extend([b"", b""])),
    "parameters that are a list": Case('"parameters" must be an object', _set("parameters", [1])),
    "a parameter that is an object": Case('"parameters" must be an object', _set("parameters", {"a": {}})),
    "outputs that are an object": Case("outputs", _set("outputs", {"name": "embedding"})),
    "an output without a name": Case("needs a name", _set("outputs", [{}]), lambda message: message.outputs.add()),
    "an unknown output": Case("no output 'other'", _set("outputs", [{"name": "other"}]), lambda message: message.outputs.add(name="other")),
    "binary data that is not there": Case("claims 9 binary bytes", _set("input.parameters", {"binary_data_size": 9})),
    "binary data of a negative size": Case("claims -1 binary bytes", _set("input.parameters", {"binary_data_size": -1})),
    "the classification extension": Case("classification", _set("outputs", [{"name": "embedding", "parameters": {"classification": 1}}])),
}


def good() -> Fields:
    return {"id": "a", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]}


@pytest.fixture(autouse=True)
def _the_model_answers_before_and_after(endpoint: Endpoint) -> Iterator[None]:
    endpoint.require_right(HEALTHY)
    yield
    assert not endpoint.require_right(HEALTHY).is_cold
    assert endpoint.instances()[0]["in_flight"] == 0


def post(endpoint: Endpoint, path: str, body: bytes, headers: str = "") -> tuple[int, Fields]:
    with PlainCaller.to_port(endpoint.server.port) as caller:
        status, answer = caller.request("POST", path, body, headers)
    return status, orjson.loads(answer)


def _broken(case: Case) -> bytes:
    request = good()
    assert case.json is not None
    case.json(request)
    return orjson.dumps(request).replace(b'"HALF"', b'"\\ud800"')


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.json is not None])
def test_over_http_it_is_bad_input(endpoint: Endpoint, name: str) -> None:
    status, answer = post(endpoint, f"/v2/models/{NAME}/infer", _broken(CASES[name]))
    assert status == 400, answer
    assert CASES[name].sentence in answer["error"]
    assert 0 < len(answer["error"]) < 2000, "a caller's megabytes are not sent back"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.json is not None])
def test_over_invoke_endpoint_it_is_the_models_error(endpoint: Endpoint, name: str) -> None:
    header = f"X-Amzn-SageMaker-Target-Model: {HEALTHY}\r\n"
    status, answer = post(endpoint, "/endpoints/embeddings/invocations", _broken(CASES[name]), header)
    assert (status, answer["OriginalStatusCode"]) == (424, 400), answer
    assert answer["ErrorCode"] == "CLIENT_ERROR_FROM_MODEL"
    assert 0 < len(answer["OriginalMessage"]) < 2000


@pytest.fixture(scope="module")
def channel(endpoint: Endpoint) -> Iterator[grpc.Channel]:
    assert endpoint.server.grpc_address is not None
    with grpc.insecure_channel(endpoint.server.grpc_address) as opened:
        yield opened


def _refused(channel: grpc.Channel, body: bytes, method: str = "ModelInfer") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(body, timeout=30)
    return failure.value


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.message is not None])
def test_over_grpc_it_is_an_invalid_argument(channel: grpc.Channel, name: str) -> None:
    message = MESSAGES["ModelInferRequest"](model_name=NAME)
    item = message.inputs.add(name="text", datatype="BYTES", shape=[1])
    item.contents.bytes_contents.append(TEXT.encode())
    change = CASES[name].message
    assert change is not None
    change(message)
    error = _refused(channel, message.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert CASES[name].sentence in error.details()
    assert 0 < len(error.details()) < 2000


# What surrounds the tensors.

ADDRESSES = {
    "an unknown model": ("embeddings/nobody", "Nothing lies at"),
    "a model above the prefix": ("embeddings/../secrets", "without '..'"),
    "a model of another store": ("embeddings/s3://bucket/key", "without a scheme"),
    "a bare name above the prefix": ("../secrets", "without '..'"),
    "an endpoint without a model": ("embeddings", "Nothing lies at"),
    "a name that ends in a slash": ("embeddings/", "Nothing lies at"),
    "a name of a megabyte": ("embeddings/" + "m" * 2**14, "1 to 1024"),
    "a name with a line end": ("embeddings/a\nb", "1 to 1024"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_model_that_cannot_be_is_not_found_or_refused(endpoint: Endpoint, channel: grpc.Channel, name: str) -> None:
    model, sentence = ADDRESSES[name]
    path = f"/v2/models/{model}/infer".replace("\n", "%0A")
    status, answer = post(endpoint, path, orjson.dumps(good()))
    assert status in {400, 404}
    assert sentence in answer["error"]
    error = _refused(channel, MESSAGES["ModelInferRequest"](model_name=model).SerializeToString())
    assert error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    assert sentence in error.details()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff", b"[" * 10_000])
def test_a_body_that_is_no_object_is_bad_input(endpoint: Endpoint, body: bytes) -> None:
    status, answer = post(endpoint, f"/v2/models/{NAME}/infer", body)
    assert status == 400
    assert answer["error"]


@pytest.mark.parametrize("length", ["", "x", "-1", "999", "1e3", "9" * 30, "\u0661"])
def test_a_length_of_the_json_that_cannot_be_is_bad_input(endpoint: Endpoint, length: str) -> None:
    with PlainCaller.to_port(endpoint.server.port) as caller:
        body = orjson.dumps(good())
        lines = [f"POST /v2/models/{NAME}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, f"Inference-Header-Content-Length: {length}", "", ""])
        status, answer = caller.exchange(head.encode() + body)
    assert status == 400
    assert "Inference-Header-Content-Length" in orjson.loads(answer)["error"]


def test_a_length_of_the_json_that_cuts_it_is_bad_input(endpoint: Endpoint) -> None:
    status, answer = post(endpoint, f"/v2/models/{NAME}/infer", orjson.dumps(good()), "Inference-Header-Content-Length: 20\r\n")
    assert (status, "not valid JSON" in answer["error"]) == (400, True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_an_encoding_that_the_body_does_not_have_is_bad_input(endpoint: Endpoint, encoding: str) -> None:
    status, answer = post(endpoint, f"/v2/models/{NAME}/infer", orjson.dumps(good()), f"Content-Encoding: {encoding}\r\n")
    assert status == 400
    assert answer["error"]


@pytest.mark.parametrize("body", [b"{", b'{"parameters": []}', b"[]"])
def test_a_load_that_cannot_be_understood_is_bad_input(endpoint: Endpoint, body: bytes) -> None:
    assert post(endpoint, f"/v2/repository/models/{NAME}/load", body)[0] == 400


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryModelLoad"])
def test_a_message_that_is_none_ends_its_own_call_only(channel: grpc.Channel, method: str) -> None:
    error = _refused(channel, b"\xff" * 100, method)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"the request is no inference.{method}Request"


def test_a_message_that_is_none_ends_its_stream(channel: grpc.Channel) -> None:
    stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as failure:
        list(stream(iter([b"\xff" * 100]), timeout=30))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    assert _refused(channel, b"", "Nothing").code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_protocols_own_parameters_are_no_business_of_the_models(channel: grpc.Channel, endpoint: Endpoint) -> None:
    own: dict[str, Scalar] = {"timeout": 1000, "sequence_id": "s", "sequence_start": True, "sequence_end": False}
    message = MESSAGES["ModelInferRequest"](model_name=NAME, raw_input_contents=[b"\x05\0\0\0hello"])
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    v2_grpc.set_scalars(message.parameters, own)
    message.parameters["priority"].uint64_param = 2**64 - 1
    message.parameters["nothing"].SetInParent()
    assert channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message.SerializeToString(), timeout=30)
    status, _ = post(endpoint, f"/v2/models/{NAME}/infer", orjson.dumps(good() | {"parameters": own}))
    assert status == 200
