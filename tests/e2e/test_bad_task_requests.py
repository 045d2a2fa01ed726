"""The matrix of bad requests for what test_bad_requests.py does not ask: a ranker, a classifier of pairs, and token ids.

One table, sent as JSON, as binary tensors over HTTP, and as raw contents over gRPC. What every model refuses alike stands there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import orjson
import pytest

from flatshare.bench.server import PlainCaller, RunningServer
from flatshare.core.signature import Task
from flatshare.wire.v2_schema import MESSAGES
from tests.e2e.servers import Endpoint, deploy
from tests.families import MAX_TOKENS, save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
_MANY = 5000  # texts: more than a call may have
_TYPES = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32}


@dataclass(frozen=True, slots=True)
class Given:
    """One tensor of a request; its values flat, unless a test of JSON nests them."""

    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]

    def raw(self) -> bytes:
        if self.datatype == "BYTES":
            return b"".join(len(text).to_bytes(4, "little") + text for text in self.data)
        return np.array(self.data, _TYPES[self.datatype]).tobytes()


Inputs = dict[str, Given]


def texts(*values: bytes) -> Given:
    return Given("BYTES", (len(values),), values)


def rows(*values: Sequence[int]) -> Given:
    return Given("INT64", np.shape(values), np.ravel(values).tolist())


GOOD: dict[str, Inputs] = {
    "rank": {"query": texts(b"my order"), "passages": texts(b"the order", b"thank you")},
    "pair": {"text": texts(b"my order", b"ok"), "text_pair": texts(b"the order", b"thank you")},
    "ids": {"input_ids": rows([2, 5, 6, 3], [2, 7, 3, 0]), "attention_mask": rows([1, 1, 1, 1], [1, 1, 1, 0])},
}


@dataclass(frozen=True, slots=True)
class Case:
    """`change` spoils the good request of `kind`; `only_json`: bytes cannot say it, `never_json`: JSON cannot."""

    kind: str
    sentence: str
    change: Callable[[Inputs], object]
    only_json: bool = False
    never_json: bool = False


def _set(name: str, given: Given) -> Callable[[Inputs], object]:
    return lambda inputs: inputs.__setitem__(name, given)


def _drop(name: str) -> Callable[[Inputs], object]:
    return lambda inputs: inputs.pop(name)


def _but(name: str, **fields: Any) -> Callable[[Inputs], object]:
    return lambda inputs: inputs.__setitem__(name, replace(inputs[name], **fields))


_FLOAT = Given("FP32", (1,), [1.0])
CASES: dict[str, Case] = {
    "no query": Case("rank", "takes 'query'", _drop("query")),
    "no passages": Case("rank", "takes 'query'", _drop("passages")),
    "two queries": Case("rank", "the model has no input 'query' BYTES [2]", _set("query", texts(b"a", b"b"))),
    "an empty list of queries": Case("rank", "the model has no input 'query' BYTES [0]", _set("query", texts())),
    "an empty list of passages": Case("rank", "send texts as 'passages'", _set("passages", texts())),
    "a query of numbers": Case("rank", "no input 'query' FP32", _set("query", _FLOAT)),
    "passages of numbers": Case("rank", "no input 'passages' INT64", _set("passages", rows([1, 2]))),
    "passages in a square": Case("rank", "no input 'passages' BYTES [2, 2]", _set("passages", Given("BYTES", (2, 2), [b"a"] * 4))),
    "a text in place of a query": Case("rank", "no input 'text'", lambda inputs: inputs.__setitem__("text", inputs.pop("query"))),
    "too many passages": Case("rank", "split the call", _set("passages", texts(*[b"a"] * _MANY))),
    "fewer passages than the shape says": Case("rank", "", _but("passages", shape=(3,))),
    "more passages than the shape says": Case("rank", "", _but("passages", shape=(1,))),
    "a passage that is not UTF-8": Case("rank", "not UTF-8", _set("passages", texts(b"\xff\xfe")), never_json=True),
    "a query that is not UTF-8": Case("rank", "not UTF-8", _set("query", texts(b"\xff\xfe")), never_json=True),
    "ids beside query and passages": Case("rank", "send texts or token ids", _set("input_ids", rows([2, 3]))),
    "a pair without its text": Case("pair", "no text", _drop("text")),
    "a pair too few": Case("pair", "2 texts and 1 to pair them with", _set("text_pair", texts(b"a"))),
    "a pair too many": Case("pair", "2 texts and 3 to pair them with", _set("text_pair", texts(b"a", b"b", b"c"))),
    "no pair at all": Case("pair", "no text", _set("text_pair", texts())),
    "pairs of numbers": Case("pair", "no input 'text_pair' FP32", _set("text_pair", _FLOAT)),
    "pairs in a cube": Case("pair", "no input 'text_pair'", _but("text_pair", shape=(2, 1, 1))),
    "too many pairs": Case("pair", "split the call", lambda i: i.update(dict.fromkeys(("text", "text_pair"), texts(*[b"a"] * _MANY)))),
    "a pair that is not UTF-8": Case("pair", "not UTF-8", _set("text_pair", texts(b"a", b"\xff")), never_json=True),
    "ids beside pairs": Case("pair", "send texts or token ids", _set("input_ids", rows([2, 3]))),
    "ids of 32 bits": Case("ids", "no input 'input_ids' INT32", _but("input_ids", datatype="INT32")),
    "ids that are fractions": Case("ids", "no input 'input_ids' FP32", _but("input_ids", datatype="FP32")),
    "ids that are texts": Case("ids", "no input 'input_ids' BYTES", _set("input_ids", Given("BYTES", (1, 1), [b"2"]))),
    "a fraction among ids": Case("ids", "", _but("input_ids", data=[2, 5, 1.5, 3, 2, 7, 3, 0]), only_json=True),
    "a text among ids": Case("ids", "", _but("input_ids", data=[2, 5, "6", 3, 2, 7, 3, 0]), only_json=True),
    "nothing among ids": Case("ids", "", _but("input_ids", data=[2, 5, None, 3, 2, 7, 3, 0]), only_json=True),
    "an id beyond 64 bits": Case("ids", "", _but("input_ids", data=[2, 5, 2**64 - 1, 3, 2, 7, 3, 0]), only_json=True),
    "ragged ids": Case("ids", "", _but("input_ids", data=[[2, 5, 6, 8, 3], [2, 7, 3]]), only_json=True),
    "ragged ids that are too few": Case("ids", "", _but("input_ids", data=[[2, 5, 6, 3], [2, 7, 3]]), only_json=True),
    "ids in a line": Case("ids", "no input 'input_ids' INT64 [8]", _but("input_ids", shape=(8,))),
    "more ids in the shape than there are": Case("ids", "", _but("input_ids", shape=(2, 5))),
    "fewer ids in the shape than there are": Case("ids", "", _but("input_ids", shape=(2, 3))),
    "an id beyond the vocabulary": Case("ids", "outside of 0 to", _set("input_ids", rows([2, 5, 6, 3], [2, 100_000, 3, 0]))),
    "the largest id that there is": Case("ids", "outside of 0 to", _set("input_ids", rows([2, 5, 2**63 - 1, 3], [2, 7, 3, 0]))),
    "a negative id": Case("ids", "outside of 0 to", _set("input_ids", rows([2, -1, 6, 3], [2, 7, 3, 0]))),
    "no row": Case("ids", "has no row", lambda i: i.update(dict.fromkeys(i, Given("INT64", (0, 4), [])))),
    "rows of nothing": Case("ids", "", lambda i: i.update(dict.fromkeys(i, Given("INT64", (2, 0), [])))),
    "a row that is too long": Case("ids", f"takes 1 to {MAX_TOKENS}", lambda i: i.update(dict.fromkeys(i, rows([1] * (MAX_TOKENS + 1))))),
    "too many rows": Case("ids", "split the call", lambda i: i.update(dict.fromkeys(i, rows(*[[1]] * _MANY)))),
    "a mask of shorter rows": Case("ids", "they must be equal", _set("attention_mask", rows([1, 1, 1], [1, 1, 1]))),
    "a mask of longer rows": Case("ids", "they must be equal", _set("attention_mask", rows([1] * 5, [1] * 5))),
    "a mask of fewer rows": Case("ids", "they must be equal", _set("attention_mask", rows([1, 1, 1, 1]))),
    "a mask of 32 bits": Case("ids", "no input 'attention_mask' INT32", _but("attention_mask", datatype="INT32")),
    "a mask with a hole": Case("ids", "one stretch of 1", _set("attention_mask", rows([1, 0, 1, 1], [1, 1, 1, 0]))),
    "a mask of nothing": Case("ids", "all 0", _set("attention_mask", rows([1, 1, 1, 1], [0, 0, 0, 0]))),
    "a mask of twos": Case("ids", "one stretch of 1", _set("attention_mask", rows([2, 2, 2, 2], [1, 1, 1, 0]))),
    "a mask without ids": Case("ids", "no text", _drop("input_ids")),
    "segments of another length": Case("ids", "they must be equal", _set("token_type_ids", rows([0, 0], [0, 0]))),
    "a third segment": Case("ids", "may hold 0 and 1", _set("token_type_ids", rows([0, 0, 2, 0], [0, 0, 0, 0]))),
    "texts beside ids": Case("ids", "send texts or token ids", _set("text", texts(b"a"))),
}
BYTES_ROADS = [name for name, case in CASES.items() if not case.only_json]


@pytest.fixture(scope="module")
def tasks(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    folder = tmp_path_factory.mktemp("bad-tasks")
    save_model(folder / "rank", "bert", Task.RANKING)
    save_model(folder / "pair", "bert", Task.CLASSIFICATION)
    save_model(folder / "ids", "bert", Task.EMBEDDING)
    return deploy(server, "bad-tasks", folder)


@pytest.fixture(scope="module")
def channel(tasks: Endpoint) -> Iterator[grpc.Channel]:
    assert tasks.server.grpc_address is not None
    with grpc.insecure_channel(tasks.server.grpc_address) as opened:
        yield opened


def _spoiled(name: str) -> Inputs:
    case = CASES[name]
    inputs = dict(GOOD[case.kind])
    case.change(inputs)
    return inputs


def as_json(tasks: Endpoint, kind: str, inputs: Inputs) -> tuple[int, dict[str, Any]]:
    listed = [
        {
            "name": name, "datatype": given.datatype, "shape": given.shape,
            "data": [value.decode() if isinstance(value, bytes) else value for value in given.data],
        }
        for name, given in inputs.items()
    ]  # fmt: skip
    return _post(tasks, kind, orjson.dumps({"inputs": listed}), "")


def as_binary(tasks: Endpoint, kind: str, inputs: Inputs) -> tuple[int, dict[str, Any]]:
    raw = {name: given.raw() for name, given in inputs.items()}
    listed = [
        {"name": name, "datatype": given.datatype, "shape": given.shape, "parameters": {"binary_data_size": len(raw[name])}}
        for name, given in inputs.items()
    ]
    head = orjson.dumps({"inputs": listed})
    return _post(tasks, kind, head + b"".join(raw.values()), f"Inference-Header-Content-Length: {len(head)}\r\n")


def _post(tasks: Endpoint, kind: str, body: bytes, headers: str) -> tuple[int, dict[str, Any]]:
    with PlainCaller.to_port(tasks.server.port) as caller:
        status, answer = caller.request("POST", f"/v2/models/bad-tasks/{kind}/infer", body, headers)
    return status, orjson.loads(answer)


def by_grpc(channel: grpc.Channel, kind: str, inputs: Inputs) -> bytes:
    message = MESSAGES["ModelInferRequest"](model_name=f"bad-tasks/{kind}")
    for name, given in inputs.items():
        message.inputs.add(name=name, datatype=given.datatype, shape=given.shape)
        message.raw_input_contents.append(given.raw())
    answer: bytes = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message.SerializeToString(), timeout=30)
    return answer


@pytest.fixture(autouse=True)
def _the_models_answer_afterwards(tasks: Endpoint) -> Iterator[None]:
    yield
    assert tasks.instances()[0]["in_flight"] == 0
    assert [kind for kind, inputs in GOOD.items() if as_json(tasks, kind, inputs)[0] != 200] == []


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_spoiled_below_is_answered_on_every_road(tasks: Endpoint, channel: grpc.Channel, kind: str) -> None:
    assert as_json(tasks, kind, GOOD[kind])[1] == as_binary(tasks, kind, GOOD[kind])[1]
    assert by_grpc(channel, kind, GOOD[kind])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.never_json])
def test_as_json_it_is_bad_input(tasks: Endpoint, name: str) -> None:
    _require_bad(name, *as_json(tasks, CASES[name].kind, _spoiled(name)))


@pytest.mark.parametrize("name", BYTES_ROADS)
def test_as_binary_tensors_it_is_bad_input(tasks: Endpoint, name: str) -> None:
    _require_bad(name, *as_binary(tasks, CASES[name].kind, _spoiled(name)))


def _require_bad(name: str, status: int, answer: dict[str, Any]) -> None:
    assert status == 400, answer
    assert CASES[name].sentence in answer["error"]
    assert 0 < len(answer["error"]) < 2000


@pytest.mark.parametrize("name", BYTES_ROADS)
def test_over_grpc_it_is_an_invalid_argument(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        by_grpc(channel, CASES[name].kind, _spoiled(name))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT, failure.value.details()
    assert CASES[name].sentence in failure.value.details()
    assert 0 < len(failure.value.details()) < 2000
