"""`flatshare bench protocols`: what each protocol adds to tokenise + run, on a real server, in one run; and how long imports take."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from flatshare.bench import imports
from flatshare.bench.bare import BareEngine
from flatshare.bench.grpc_echo import METHOD, echo_server
from flatshare.bench.numbers import median, percentile
from flatshare.bench.server import ENDPOINT, PlainCaller, RunningServer, invocation, running_server
from flatshare.bench.story import ROOMY, Results, Steps, import_all
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants

TARGETS = {
    "v2_http_added_p50_ms": 1.0, "v2_grpc_added_p50_ms": 1.0, "v2_http_binary_added_p50_ms": 0.8,
    "import_90mb_s": 1.5, "register_1000_s": 30.0,
}  # fmt: skip
MODELS = 20
_SETTLING_TURNS = 2  # the first loads the models
_INFER = "/inference.GRPCInferenceService/ModelInfer"
Call = Callable[[str, str], Callable[[], object]]
"""From a target and a text to a call that is ready to be made: what a client does beforehand is not measured."""


def run(folder: Path, calls: int, heads: int, begin: Steps) -> dict[str, float]:
    """Measure everything in `folder`, which should have 4 GB free: so many calls on each road, and so many heads on one trunk."""
    catalogue = tenants(MODELS // 2)
    prefix, data = folder / "models", folder / "data"
    step = begin("writing checkpoints", len(catalogue))
    for _ in write_tenants(base_checkpoint(), prefix, catalogue):
        step()
    results = Results()
    with running_server(data, prefix, ROOMY) as server:
        import_all(server, catalogue, begin)
    with running_server(data, prefix, ROOMY) as server:  # another one, whose processes are those that serve: importers come and go
        bare = BareEngine(data / "store", prefix)
        step = begin("one caller, every protocol in turn", calls + _SETTLING_TURNS * MODELS)
        _added(server, bare, catalogue, calls, results, step)
    results.put("grpc_echo_p50_ms", _grpc_echo_ms(bare, catalogue, calls), 3)
    step = begin("importing a checkpoint, registering heads", 2)
    results.put("import_90mb_s", imports.import_90mb_s())
    step()
    results.put(f"register_{heads}_s", imports.register_1000_s(heads), 1)
    step()
    return results.values


def _added(
    server: RunningServer, bare: BareEngine, models: list[Tenant], calls: int, results: Results, progress: Callable[[], None]
) -> None:
    """Turns of one call to each model, as `bench story` takes them: the bare engine, then each protocol over the same texts."""
    with ExitStack() as stack:
        roads = _roads(server, stack)
        engine: list[float] = []
        series: dict[str, list[float]] = {name: [] for name in roads}
        cpu_s = dict.fromkeys(roads, 0.0)
        for turn in range(_SETTLING_TURNS + -(-calls // len(models))):
            work = [(tenant.target, text_of(30, turn * len(models) + index)) for index, tenant in enumerate(models)]
            took = [bare.run_s(target, text) for target, text in work]
            turns = {name: _turn(server, [road(*item) for item in work]) for name, road in roads.items()}
            if turn >= _SETTLING_TURNS:
                engine += took
                for name, one in turns.items():
                    series[name] += one.seconds
                    cpu_s[name] += one.server_cpu_s
            for _ in models:
                progress()
    results.put("engine_p50_ms", 1e3 * median(engine))
    for name, seconds in series.items():
        results.put(f"{name}_added_p50_ms", 1e3 * median([s - e for s, e in zip(seconds, engine, strict=True)]), 3)
        results.put(f"{name}_added_p99_ms", 1e3 * (percentile(seconds, 0.99) - percentile(engine, 0.99)), 3)
        results.put(f"{name}_server_cpu_ms", 1e3 * cpu_s[name] / len(seconds), 3)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One call to each model by one road."""

    seconds: list[float]
    server_cpu_s: float
    """Of all processes of the server. It says what a road costs on a machine that is too busy for latencies, too."""


def _turn(server: RunningServer, calls: list[Callable[[], object]]) -> _Turn:
    before_s = server.cpu_seconds()
    seconds = [_timed(call) for call in calls]
    return _Turn(seconds, server.cpu_seconds() - before_s)


def _roads(server: RunningServer, stack: ExitStack) -> dict[str, Call]:
    """Callers with as little of their own as can be; and NVIDIA's clients, if they are installed."""
    caller = stack.enter_context(PlainCaller.to_port(server.port))
    roads: dict[str, Call] = {
        "invoke": lambda target, text: partial(caller.exchange, invocation(target, orjson.dumps({"inputs": text}))),
        "v2_http": lambda target, text: partial(_post, caller, _v2_message(target, *_json_body(text))),
        "v2_http_binary": lambda target, text: partial(_post, caller, _v2_message(target, *_binary_body(text))),
        "v2_grpc": _grpc_road(server, stack),
    }
    if find_spec("tritonclient") is not None:
        roads |= {f"tritonclient_{name}": _triton_road(server, name, stack) for name in ("http", "grpc")}
    return roads


def _grpc_echo_ms(bare: BareEngine, models: list[Tenant], calls: int) -> float:
    """What the gRPC library alone takes, without a server of ours: an echo, the engine having run before each call as it does on a server.

    Its caches are then as cold as there; in a loop of its own an echo takes a third.
    """
    import grpc  # noqa: PLC0415  # the other benchmarks do without

    took: list[float] = []
    with echo_server() as address, grpc.insecure_channel(address) as channel:
        send = channel.unary_unary(METHOD)
        for index in range(calls + MODELS):
            text = text_of(30, index)
            bare.run_s(models[index % len(models)].target, text)
            took.append(_timed(partial(send, text.encode())))
    return 1e3 * median(took[MODELS:])


def _post(caller: PlainCaller, message: bytes) -> None:
    status, answer = caller.exchange(message)
    if status != 200:
        raise RuntimeError(f"{status} {answer[:300]!r}")


def _v2_message(target: str, body: bytes, json_bytes: int | None) -> bytes:
    lines = [f"POST /v2/models/{ENDPOINT}/{target}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if json_bytes is not None:
        lines.append(f"Inference-Header-Content-Length: {json_bytes}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _json_body(text: str) -> tuple[bytes, None]:
    return orjson.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}), None


def _binary_body(text: str) -> tuple[bytes, int]:
    raw = _raw(text)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + raw, len(head)


def _raw(text: str) -> bytes:
    return len(text.encode()).to_bytes(4, "little") + text.encode()


def _grpc_road(server: RunningServer, stack: ExitStack) -> Call:
    """A channel that sends bytes and gets bytes."""
    import grpc  # noqa: PLC0415  # the other benchmarks do without

    from flatshare.wire.v2_schema import MESSAGES  # noqa: PLC0415

    assert server.grpc_address is not None, "the server was started without gRPC"
    channel = stack.enter_context(grpc.insecure_channel(server.grpc_address))
    send = channel.unary_unary(_INFER)

    def road(target: str, text: str) -> Callable[[], object]:
        message = MESSAGES["ModelInferRequest"](model_name=f"{ENDPOINT}/{target}", raw_input_contents=[_raw(text)])
        message.inputs.add(name="text", datatype="BYTES", shape=[1])
        return partial(send, message.SerializeToString())

    return road


def _triton_road(server: RunningServer, protocol: str, stack: ExitStack) -> Call:
    module: Any = import_module(f"tritonclient.{protocol}")
    address = server.url.removeprefix("http://") if protocol == "http" else server.grpc_address
    client = stack.enter_context(module.InferenceServerClient(address))

    def road(target: str, text: str) -> Callable[[], object]:
        def call() -> object:
            tensor = module.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([text.encode()], object))
            return client.infer(f"{ENDPOINT}/{target}", [tensor]).as_numpy("embedding")

        return call

    return road


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
