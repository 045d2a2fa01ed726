"""Latency that the server adds, and CPU that it takes, beside the bare engine in the same run."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import orjson

from flatshare.bench.bare import BareEngine
from flatshare.bench.machine import busy_seconds
from flatshare.bench.server import PlainCaller, RunningServer, invocation
from flatshare.bench.tenants import Tenant, text_of


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds, one per call: three series over the same models and texts, taken in turns."""

    bare: tuple[float, ...]
    plain: tuple[float, ...]
    boto3: tuple[float, ...]


def one_caller(server: RunningServer, bare: BareEngine, tenants: list[Tenant], calls: int, progress: Callable[[], None]) -> Latencies:
    """Bare engine, plain HTTP, boto3, in turns of one call to each model.

    Turns, not single calls: a caller who runs an engine between two calls would find its own caches cold, which no caller does.
    """
    series: tuple[list[float], list[float], list[float]] = ([], [], [])
    turns = 2 + -(-calls // len(tenants))  # two to load the models and settle
    with PlainCaller.to_port(server.port) as caller:
        for turn in range(turns):
            texts = {tenant.target: text_of(30, turn * len(tenants) + index) for index, tenant in enumerate(tenants)}
            messages = [invocation(target, orjson.dumps({"inputs": text})) for target, text in texts.items()]
            took = (
                [bare.run_s(target, text) for target, text in texts.items()],
                [_timed(partial(caller.exchange, message)) for message in messages],
                [_timed(partial(server.invoke, target, text)) for target, text in texts.items()],
            )
            if turn >= 2:
                for seconds, values in zip(series, took, strict=True):
                    seconds.extend(values)
            for _ in tenants:
                progress()
    return Latencies(*(tuple(seconds) for seconds in series))


@dataclass(frozen=True, slots=True)
class Throughput:
    """Sums over all rounds."""

    requests: int
    server_seconds: float
    server_cpu_seconds: float
    bare_seconds: float
    bare_cpu_seconds: float
    others_cores: float
    """CPU that other programs than caller and server used meanwhile, in cores."""


def many_callers(
    server: RunningServer,
    bare: BareEngine,
    tenants: list[Tenant],
    *,
    callers: int,
    rounds: int,
    per_round: int,
    progress: Callable[[], None],
) -> Throughput:
    """Alternate rounds of the same requests: through the server by `callers` connections, and on the bare engine by two threads."""
    seconds = cpu = bare_seconds = bare_cpu = others = 0.0
    for index in range(rounds + 1):
        work = [(tenants[i % len(tenants)].target, text_of(30, index * per_round + i)) for i in range(per_round)]
        before_cpu, before_busy, before_own = server.cpu_seconds(), busy_seconds(), time.process_time()
        took = _through_server(server, work, callers)
        server_cpu, busy = server.cpu_seconds() - before_cpu, busy_seconds() - before_busy
        own = time.process_time() - before_own
        reference = bare.load(work, workers=2)
        progress()
        if index == 0:
            continue  # the first round warms both sides
        seconds, cpu = seconds + took, cpu + server_cpu
        others += max(0.0, busy - server_cpu - own)
        bare_seconds, bare_cpu = bare_seconds + reference.seconds, bare_cpu + reference.cpu_seconds
    return Throughput(rounds * per_round, seconds, cpu, bare_seconds, bare_cpu, others / seconds)


def _through_server(server: RunningServer, work: list[tuple[str, str]], callers: int) -> float:
    pending = iter([(target, orjson.dumps({"inputs": text})) for target, text in work])
    lock = threading.Lock()
    failures: list[Exception] = []

    def call() -> None:
        try:
            with PlainCaller.to_port(server.port) as caller:
                while True:
                    with lock:
                        item = next(pending, None)
                    if item is None:
                        return
                    caller.invoke(*item)
        except (RuntimeError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - started


def at_once(server: RunningServer, target: str, texts: list[str]) -> list[float]:
    """Seconds until each of several simultaneous boto3 calls to one model is answered."""
    seconds: list[float] = []
    gate = threading.Barrier(len(texts))

    def call(text: str) -> None:
        gate.wait()
        seconds.append(_timed(lambda: server.invoke(target, text)))

    threads = [threading.Thread(target=call, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seconds) != len(texts):
        raise RuntimeError("a call failed, see the error above")
    return seconds


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
