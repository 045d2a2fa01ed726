"""`flatshare bench control`: the control plane with many models known, and how soon it is back after it was killed."""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flatshare.bench.numbers import median, percentile
from flatshare.bench.server import PlainCaller, RunningServer, start_server
from flatshare.bench.story import Results, Steps

TARGETS = {"control_call_p99_ms": 50.0, "describe_rps": 500.0, "restart_s": 5.0}
AT_LEAST = {"describe_rps"}
"""Targets that are floors; the others are ceilings."""
_CALLERS = 8
_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is known and how much is asked; `quick` is for trying the benchmark out, not for figures."""

    models: int = 5000
    endpoints: int = 50
    calls: int = 3000
    describe_s: float = 10.0


QUICK = Scale(models=200, endpoints=3, calls=200, describe_s=1.0)
Call = tuple[str, dict[str, Any]]


def run(folder: Path, scale: Scale, begin: Steps) -> dict[str, float]:
    """Measure everything in `folder`, which is on the disk that the database's commits wait for."""
    results = Results()
    data, models = folder / "data", folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    options = ("--max-instances", str(scale.endpoints + 4))
    with closing(start_server(data, "8GiB", options=options)) as server:
        _create_models(server, models, scale, begin)
        _mixed_calls(server, models, scale, results, begin)
        _describes(server, scale, results, begin)
        _create_endpoints(server, scale, results, begin)
        _kill(server)
    started_s = time.monotonic()
    with closing(start_server(data, "8GiB", options=options)) as server:
        _restart(server, scale, started_s, results, begin)
    return results.values


class ControlCaller:
    """Control calls on one connection, without the SDK."""

    def __init__(self, port: int) -> None:
        self._caller = PlainCaller.to_port(port)

    def __call__(self, operation: str, **params: Any) -> dict[str, Any]:
        """Raises RuntimeError unless it is answered with 200."""
        headers = f"X-Amz-Target: SageMaker.{operation}\r\n"
        status, body = self._caller.request("POST", "/", orjson.dumps(params), headers)
        if status != 200:
            raise RuntimeError(f"{operation}: {status} {body[:300]!r}")
        answer: dict[str, Any] = orjson.loads(body or b"{}")
        return answer

    def close(self) -> None:
        self._caller.__exit__()


def _create_models(server: RunningServer, models: Path, scale: Scale, begin: Steps) -> None:
    step = begin("creating models", scale.models)
    call = ControlCaller(server.port)
    for number in range(scale.models):
        call("CreateModel", **_model(number, models))
        step()
    call.close()


def _model(number: int, models: Path, name: str = "model") -> dict[str, Any]:
    container = {"Image": "x", "Mode": "MultiModel", "ModelDataUrl": f"file://{models}/{number}/"}
    return {"ModelName": f"{name}-{number}", "PrimaryContainer": container, "Tags": [{"Key": "team", "Value": f"team-{number % 50}"}]}


def _mixed_calls(server: RunningServer, models: Path, scale: Scale, results: Results, begin: Steps) -> None:
    """One caller, every kind of call in turn, over models drawn at random."""
    call, dice = ControlCaller(server.port), random.Random(1)
    step = begin("control calls, one caller", scale.calls)
    took: dict[str, list[float]] = {}
    for number in range(scale.calls // 10):
        for operation, params in _round(number, dice.randrange(scale.models), models):
            began_s = time.perf_counter()
            call(operation, **params)
            took.setdefault(operation, []).append(1e3 * (time.perf_counter() - began_s))
            step()
    call.close()
    every = [value for values in took.values() for value in values]
    results.put("control_call_p50_ms", median(every))
    results.put("control_call_p99_ms", percentile(every, 0.99))
    results.put("list_p99_ms", percentile([v for name, values in took.items() if name.startswith("List") for v in values], 0.99))
    results.put("change_p99_ms", percentile(took["CreateModel"] + took["DeleteModel"] + took["AddTags"], 0.99))


def _round(number: int, drawn: int, models: Path) -> list[Call]:
    """Ten calls that leave everything as it was."""
    arn = f"arn:aws:sagemaker:us-east-1:000000000000:model/model-{drawn}"
    variant = {"VariantName": "v", "ModelName": f"model-{drawn}", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
    config = f"config-{number}"
    return [
        ("CreateModel", _model(number, models, "passing")),
        ("DescribeModel", {"ModelName": f"model-{drawn}"}),
        ("ListModels", {}),
        ("ListModels", {"NameContains": f"l-{drawn}", "MaxResults": 100, "SortBy": "Name"}),
        ("AddTags", {"ResourceArn": arn, "Tags": [{"Key": "seen", "Value": str(number)}]}),
        ("ListTags", {"ResourceArn": arn}),
        ("CreateEndpointConfig", {"EndpointConfigName": config, "ProductionVariants": [variant]}),
        ("DescribeEndpointConfig", {"EndpointConfigName": config}),
        ("DeleteEndpointConfig", {"EndpointConfigName": config}),
        ("DeleteModel", {"ModelName": f"passing-{number}"}),
    ]


def _describes(server: RunningServer, scale: Scale, results: Results, begin: Steps) -> None:
    """Several callers describe models as fast as they are answered."""
    step = begin("describes, several callers", _CALLERS)
    end_s = time.monotonic() + scale.describe_s

    def describe(seed: int) -> int:
        call, dice, count = ControlCaller(server.port), random.Random(seed), 0
        while time.monotonic() < end_s:
            call("DescribeModel", ModelName=f"model-{dice.randrange(scale.models)}")
            count += 1
        call.close()
        step()
        return count

    with ThreadPoolExecutor(_CALLERS) as pool:
        results.put("describe_rps", sum(pool.map(describe, range(_CALLERS))) / scale.describe_s, 0)


def _create_endpoints(server: RunningServer, scale: Scale, results: Results, begin: Steps) -> None:
    """Each with an instance of its own."""
    call = ControlCaller(server.port)
    began_s = time.monotonic()
    for number in range(scale.endpoints):
        variant = {"VariantName": "v", "ModelName": f"model-{number}", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
        call("CreateEndpointConfig", EndpointConfigName=f"e-{number}", ProductionVariants=[variant])
        call("CreateEndpoint", EndpointName=f"e-{number}", EndpointConfigName=f"e-{number}")
    _until_in_service(call, scale.endpoints, begin("endpoints coming into service", scale.endpoints))
    results.put("endpoints_created_s", time.monotonic() - began_s)
    call.close()


def _until_in_service(call: ControlCaller, wanted: int, step: Callable[[], None]) -> None:
    """Each look is a call, and looks are some way apart, so as not to take the time of what is looked at."""
    deadline_s, shown = time.monotonic() + _DEADLINE_S, 0
    while shown < wanted:
        found = len(call("ListEndpoints", StatusEquals="InService", MaxResults=100)["Endpoints"])
        for _ in range(found - shown):
            step()
        shown = max(shown, found)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"only {shown} of {wanted} endpoints came into service within {_DEADLINE_S:.0f} s")
        time.sleep(0.05)


def _kill(server: RunningServer) -> None:
    """SIGKILL, and wait until its instances have noticed: what runs afterwards is what the restart has started."""
    pids = server.pids()
    server.process.kill()
    server.process.wait()
    while any(_is_alive(pid) for pid in pids):
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _restart(server: RunningServer, scale: Scale, started_s: float, results: Results, begin: Steps) -> None:
    """The greeting is out: the server listens. `started_s` is from before the process was started."""
    call = ControlCaller(server.port)
    known = {summary["EndpointName"] for summary in call("ListEndpoints", MaxResults=100)["Endpoints"]}
    assert len(known) == scale.endpoints, "the restart has lost endpoints"
    call("DescribeModel", ModelName=f"model-{scale.models - 1}")
    results.put("restart_control_s", time.monotonic() - started_s)
    _until_all_answer(server, known, started_s, results, begin("endpoints answering again", scale.endpoints))
    _until_in_service(call, scale.endpoints, begin("endpoints coming back", scale.endpoints))
    results.put("restart_all_in_service_s", time.monotonic() - started_s)
    call.close()


def _until_all_answer(server: RunningServer, silent: set[str], started_s: float, results: Results, step: Callable[[], None]) -> None:
    """No model lies at its prefix, so an instance that runs answers 400, where the gateway alone answers 503: it is not there yet."""
    deadline_s, count = time.monotonic() + _DEADLINE_S, len(silent)
    with PlainCaller.to_port(server.port) as caller:
        while silent and time.monotonic() < deadline_s:
            for name in sorted(silent):
                headers = "X-Amzn-SageMaker-Target-Model: nothing\r\n"
                status, body = caller.request("POST", f"/endpoints/{name}/invocations", b'{"inputs": "x"}', headers)
                if status not in {400, 503}:
                    raise RuntimeError(f"{name}: {status} {body[:300]!r}")
                if status == 400:
                    if len(silent) == count:
                        results.put("restart_first_answer_s", time.monotonic() - started_s)
                    silent = silent - {name}
                    step()
            time.sleep(0.01)  # not to take the time of what is waited for
    if silent:
        raise RuntimeError(f"{len(silent)} of {count} endpoints did not answer within {_DEADLINE_S:.0f} s")
    results.put("restart_s", time.monotonic() - started_s)
