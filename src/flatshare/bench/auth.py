"""`flatshare bench auth`: what a signature and grants cost a call, on two real servers that are called in turns."""

import time
from pathlib import Path

import orjson

from flatshare.bench.machine import cpu_seconds
from flatshare.bench.numbers import median
from flatshare.bench.server import PlainCaller, RunningServer, invocation, running_server, signed_invocation
from flatshare.bench.story import Results, Steps
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants
from flatshare.core.access import AccessKey, Ask, Grant, Resource
from flatshare.core.clock import SystemClock
from flatshare.core.settings import MAX_BODY_BYTES, SecuritySettings
from flatshare.security.guard import Guard, Road
from flatshare.security.keys import KeyFile
from flatshare.wire.http import Request

TARGETS = {"auth_added_p50_ms": 0.3}
_MEMORY = "2GiB"
_KEYS = 200
_TURN = 10  # calls to one server before the other's: single calls in alternation would meet caches that no caller meets


def run(folder: Path, calls: int, begin: Steps) -> dict[str, float]:
    """`calls` to each server, in turns. The caller signs ahead of the clock: what is measured is the server's part."""
    catalogue = tenants(2)
    prefix = folder / "models"
    step = begin("writing checkpoints", len(catalogue))
    for _ in write_tenants(base_checkpoint(), prefix, catalogue):
        step()
    key = _write_keys(folder / "asking", catalogue)
    with (
        running_server(folder / "open", prefix, _MEMORY) as open_server,
        running_server(folder / "asking", prefix, _MEMORY, key=_operator(folder / "asking")) as asking_server,
    ):
        results = _measure(open_server, asking_server, key, catalogue, calls, begin)
    results.put("entry_us", 1e6 * _entry_s(folder / "asking", key, catalogue[-1]), 1)
    return results.values


def _write_keys(data_dir: Path, catalogue: list[Tenant]) -> AccessKey:
    """Many keys; the caller's has a grant for each tenant, so that the last of them is looked at."""
    file = KeyFile(data_dir / "keys.json")
    grants = tuple(Grant(("sagemaker:InvokeEndpoint",), ("embeddings",), (f"{t.target.partition('/')[0]}/*",)) for t in catalogue)
    for number in range(_KEYS):
        file.create(f"tenant-{number}", grants, 0.0)
    return file.create("caller", grants, 0.0)


def _operator(data_dir: Path) -> AccessKey:
    return KeyFile(data_dir / "keys.json").create("operator", (Grant(("*",)),), 0.0)


def _measure(
    open_server: RunningServer, asking_server: RunningServer, key: AccessKey, catalogue: list[Tenant], calls: int, begin: Steps
) -> Results:
    plain, signed = list[float](), list[float]()
    turns = 2 + -(-calls // _TURN)
    step = begin("calling in turns", turns)
    with PlainCaller.to_port(open_server.port) as anonymous, PlainCaller.to_port(asking_server.port) as known:
        cpu_s = [0.0, 0.0]
        for turn in range(turns):
            if turn == 2:
                cpu_s = [cpu_seconds([server.process.pid]) for server in (open_server, asking_server)]
            bodies = [(catalogue[n % len(catalogue)].target, _body(turn, n)) for n in range(_TURN)]
            sides = [
                (anonymous, plain, [invocation(target, body) for target, body in bodies]),
                (known, signed, [signed_invocation(target, body, key) for target, body in bodies]),
            ]
            for caller, series, messages in sides[:: 1 if turn % 2 else -1]:
                took = [_timed(caller, message) for message in messages]
                if turn >= 2:  # two to load the models and settle
                    series.extend(took)
            step()
        cpu_s = [cpu_seconds([server.process.pid]) - begun for server, begun in zip((open_server, asking_server), cpu_s, strict=True)]
    results = Results()
    results.put("invoke_p50_ms", 1e3 * median(plain), 3)
    results.put("invoke_p50_with_policies_ms", 1e3 * median(signed), 3)
    added = [asked - answered for asked, answered in zip(signed, plain, strict=True)]  # the same text, moments apart
    results.put("auth_added_p50_ms", 1e3 * median(added), 3)
    # The gateways' own CPU, caches as cold as they are in service: unlike the times, it does not grow when others use the machine.
    results.put("auth_added_cpu_ms", 1e3 * (cpu_s[1] - cpu_s[0]) / len(signed), 3)
    return results


def _entry_s(data_dir: Path, key: AccessKey, tenant: Tenant) -> float:
    """What the guard alone takes for a call, in a process that does nothing else: the part that does not vary from run to run."""
    settings = SecuritySettings(auth="sigv4", keys_file=data_dir / "keys.json")
    guard = Guard(settings, SystemClock(), region="us-east-1", account="000000000000", max_body_bytes=MAX_BODY_BYTES)
    head, _, body = signed_invocation(tenant.target, _body(0, 0), key).partition(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    path = head.split(b" ")[1]
    request = Request("POST", path.decode(), {name.lower(): value for name, _, value in lines}, body, raw_path=path)
    ask = Ask("sagemaker:InvokeEndpoint", (Resource("endpoint", "embeddings"),), tenant.target)
    series = []
    for _ in range(2000):
        started_s = time.perf_counter()
        guard.require(guard.authenticate(request, Road()), ask)
        series.append(time.perf_counter() - started_s)
    return median(series)


def _body(turn: int, number: int) -> bytes:
    return orjson.dumps({"inputs": text_of(30, turn * _TURN + number)})


def _timed(caller: PlainCaller, message: bytes) -> float:
    started_s = time.perf_counter()
    status, answer = caller.exchange(message)
    took_s = time.perf_counter() - started_s
    if status != 200:
        raise RuntimeError(f"{status} {answer[:300]!r}")
    return took_s
