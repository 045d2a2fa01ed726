"""Prepacked copies as callers meet them: two servers alike, but that one may make copies of its hot models, asked in turns.

Without OpenVINO there is nothing to measure, and no figure.
"""

import time
from contextlib import ExitStack
from pathlib import Path

from flatshare.bench.machine import memory_of
from flatshare.bench.numbers import median
from flatshare.bench.server import MAPPED_ONLY, PlainCaller, RunningServer, running_server
from flatshare.bench.story import Results, Steps, import_all
from flatshare.bench.tenants import Tenant, text_of
from flatshare.bench.traffic import flood
from flatshare.instance.backends import prepacked

TARGETS = {"prepacked_speedup": 1.3}
TOKENS = 30
_MEMORY = "6GiB"
_PATIENCE_S = 120.0
_ROUND_S = 3.0
_CALLERS = 16


def run(folder: Path, prefix: Path, models: list[Tenant], calls: int, results: Results, begin: Steps) -> None:
    """Medians over `calls` of each server, the models in turn, and rounds of many callers. Raises RuntimeError if no copies are made."""
    if not prepacked.is_available():
        return
    with ExitStack() as stack:
        mapped, packed = (
            stack.enter_context(running_server(folder / name, prefix, _MEMORY, settings=settings))
            for name, settings in (("mapped", MAPPED_ONLY), ("prepacked", ""))
        )
        for server in (mapped, packed):
            import_all(server, models, begin)
        before_mb = _private_mb(packed)
        results.put("prepacked_after_s", _until_all_have_copies(packed, models, begin), 1)
        for server in (mapped, packed):  # what a run of this length needs is there on both sides
            _ask(server, models, 2 * len(models))
        results.put("prepacked_mb_per_model", (_private_mb(packed) - before_mb) / len(models), 1)
        _compare({"mapped": mapped, "prepacked": packed}, models, calls, results, begin)
        _compare_floods({"mapped": mapped, "prepacked": packed}, models, max(1, calls // 100), results, begin)


def _private_mb(server: RunningServer) -> float:
    return memory_of(server.pids()).anonymous_mb


def _ask(server: RunningServer, models: list[Tenant], calls: int) -> None:
    for number in range(calls):
        server.invoke(models[number % len(models)].target, text_of(TOKENS, number))


def _until_all_have_copies(server: RunningServer, models: list[Tenant], begin: Steps) -> float:
    """Ask until each model is hot and has its copy; for how long that took."""
    step, began_s, done = begin("until all have copies", len(models)), time.perf_counter(), 0
    while done < len(models):
        _ask(server, models, 20 * len(models))
        copies = server.status()["balance"]["copies"]
        for _ in range(copies - done):
            step()
        done = copies
        if time.perf_counter() - began_s > _PATIENCE_S:
            raise RuntimeError(f"{done} of {len(models)} models have copies after {_PATIENCE_S:.0f} s: the server's log says why")
    return time.perf_counter() - began_s


def _compare(servers: dict[str, RunningServer], models: list[Tenant], calls: int, results: Results, begin: Steps) -> None:
    """One caller. The run is tokenise and run, as the server says; the latency is the caller's."""
    step = begin("one caller, in turns", calls)
    run_ms: dict[str, list[float]] = {name: [] for name in servers}
    took_ms: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        callers = {name: stack.enter_context(PlainCaller.to_port(server.port)) for name, server in servers.items()}
        for number in range(calls):
            target, text = models[number % len(models)].target, text_of(TOKENS, number)
            for name, server in servers.items():
                _, headers = server.invoke(target, text)
                run_ms[name].append(float(headers["x-flatshare-model-ms"]))
            for name, caller in callers.items():
                began_s = time.perf_counter()
                caller.invoke(target, b'{"inputs":"%s"}' % text.encode())
                took_ms[name].append(1e3 * (time.perf_counter() - began_s))
            step()
    for name in servers:
        results.put(f"{name}_run_p50_ms", median(run_ms[name]))
        results.put(f"{name}_latency_p50_ms", median(took_ms[name]))
    results.put("prepacked_speedup", median(run_ms["mapped"]) / median(run_ms["prepacked"]), 3)


def _compare_floods(servers: dict[str, RunningServer], models: list[Tenant], rounds: int, results: Results, begin: Steps) -> None:
    """Many callers, in alternating rounds."""
    step, answered = begin("many callers, in turns", 2 * rounds), dict.fromkeys(servers, 0)
    targets = [model.target for model in models]
    for _ in range(rounds):
        for name, server in servers.items():
            with flood(server, targets, callers=_CALLERS, tokens=TOKENS) as answers:
                time.sleep(_ROUND_S)
                answered[name] += sum(answer.status == 200 for answer in answers)
            step()
    for name, count in answered.items():
        results.put(f"{name}_requests_per_s", count / rounds / _ROUND_S, 1)
    results.put("prepacked_throughput_ratio", answered["prepacked"] / answered["mapped"], 3)
