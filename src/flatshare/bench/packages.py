"""`flatshare bench packages`: models with Python code of their own, here and on real NVIDIA Triton, in turns in one run."""

import shutil
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from flatshare.bench import hygiene
from flatshare.bench.contestants import Contestant, flatshare_instance
from flatshare.bench.machine import busy_seconds, family, memory_of
from flatshare.bench.numbers import median, percentile
from flatshare.bench.python_models import let_go, write_echo, write_models
from flatshare.bench.server import PlainCaller
from flatshare.bench.triton_peer import triton_server

TARGETS = {
    "python_resident_ratio": 2.0, "python_anonymous_ratio": 10.0, "python_cold_ratio": 0.3, "python_added_latency_p50_ms": 1.0,
    "python_throughput_ratio": 1.0,
}  # fmt: skip
AT_MOST = {"python_cold_ratio", "python_added_latency_p50_ms"}
"""Targets that are upper bounds; the others are lower ones."""
PARTS = ("latency", "memory", "throughput", "cold", "hygiene")
Steps = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    models: int = 20
    cold: int = 8
    calls: int = 400
    rounds: int = 4
    per_round: int = 120
    callers: int = 16
    untidy_calls: int = 200


QUICK = Scale(models=6, cold=2, calls=50, rounds=1, per_round=30, untidy_calls=40)


def run(folder: Path, venv: Path, scale: Scale, parts: Collection[str], begin: Steps) -> dict[str, float]:
    """Measure the `parts` in `folder`, with Triton out of `venv`. Models that an earlier run left there are used again."""
    step = begin("writing models", 1)
    models, echo = write_models(folder / "models", scale.models), write_echo(folder / "models" / "echo")
    step()
    results: dict[str, float] = {}
    if set(parts) - {"hygiene"}:
        for left_over in ("store", "triton"):
            shutil.rmtree(folder / left_over, ignore_errors=True)
        with flatshare_instance(folder / "store") as ours, triton_server(venv, folder / "triton") as peer:
            both = (ours, Contestant("triton", peer.sagemaker_port, peer.pid))
            results = _against_triton(both, models, echo, scale, parts, begin)
    if "hygiene" in parts:
        results |= hygiene.run(folder / "hygiene", scale.untidy_calls, begin)
    return {key: round(value, 3) for key, value in results.items()}


def _against_triton(
    both: tuple[Contestant, Contestant], models: list[Path], echo: Path, scale: Scale, parts: Collection[str], begin: Steps
) -> dict[str, float]:
    results: dict[str, float] = {}
    if "latency" in parts:
        results |= _latency(both, echo, scale, begin)
    if "memory" in parts:
        results |= _memory(both, models, begin)
    if "throughput" in parts:
        results |= _throughput(both, models, scale, begin)
    if "cold" in parts:
        results |= _cold(both, models[: scale.cold], begin)
    return results


def _latency(both: tuple[Contestant, Contestant], echo: Path, scale: Scale, begin: Steps) -> dict[str, float]:
    """One caller, a connection kept alive, and the bare function in the same turns."""
    values = np.arange(30, dtype=np.float32)
    body = orjson.dumps({"inputs": [{"name": "A", "datatype": "FP32", "shape": [30], "data": values}]}, option=orjson.OPT_SERIALIZE_NUMPY)
    work = _work_of(echo)
    series: dict[str, list[float]] = {"bare": [], "flatshare": [], "triton": []}
    step = begin("latency, one caller", scale.calls)
    for contestant in both:
        contestant.load("echo", echo)
    callers = {contestant.name: PlainCaller.to_port(contestant.port) for contestant in both}
    for turn in range(-(-scale.calls // 10) + 2):
        for name, times in series.items():
            for _ in range(10):
                started = time.perf_counter()
                if name == "bare":
                    work(values)
                elif callers[name].request("POST", "/models/echo/invoke", body)[0] != 200:
                    raise RuntimeError(f"{name} did not answer the echo")
                if turn >= 2:  # two to settle
                    times.append(1e3 * (time.perf_counter() - started))
        for _ in range(10):
            step()
    bare = median(series["bare"])
    return {
        "python_added_latency_p50_ms": median(series["flatshare"]) - bare,
        "python_added_latency_p99_ms": percentile(series["flatshare"], 0.99) - bare,
        "triton_added_latency_p50_ms": median(series["triton"]) - bare,
    }


def _work_of(echo: Path) -> Callable[[np.ndarray[tuple[int, ...], np.dtype[np.float32]]], object]:
    """The echo's function, without what surrounds it on a server."""
    names: dict[str, object] = {}
    code = (echo / echo.name / "1" / "model.py").read_text()
    exec(code[code.index("def work") :], names)  # noqa: S102  # our own text
    work = names["work"]
    assert callable(work)
    return work


def _memory(both: tuple[Contestant, Contestant], models: list[Path], begin: Steps) -> dict[str, float]:
    """Every model loaded and asked once; what all processes of the server hold, by model."""
    step = begin("loading", 2 * len(models))
    found = {}
    for contestant in both:
        before = memory_of(family(contestant.pid))
        for folder in models:
            contestant.load(folder.name, folder)
            contestant.invoke(folder.name, _request(30, 0))
            step()
        time.sleep(3)  # the pause in which hosts tidy up; it is no part of any time that is measured
        after = memory_of(family(contestant.pid))
        found[contestant.name] = (before, after)
    count = len(models)
    results = {}
    for name, (before, after) in found.items():
        results[f"{name}_resident_mb_per_model"] = after.pss_mb / count
        results[f"{name}_anonymous_mb_per_model"] = after.anonymous_mb / count
        results[f"{name}_base_pss_mb"] = before.pss_mb
    results["python_resident_ratio"] = results["triton_resident_mb_per_model"] / results["flatshare_resident_mb_per_model"]
    results["python_anonymous_ratio"] = results["triton_anonymous_mb_per_model"] / results["flatshare_anonymous_mb_per_model"]
    return results


def _throughput(both: tuple[Contestant, Contestant], models: list[Path], scale: Scale, begin: Steps) -> dict[str, float]:
    """Rounds of the same requests in turns."""
    _ensure_loaded(both, models)
    for folder in models:
        let_go(folder)
    step = begin(f"throughput, {scale.callers} callers", 2 * (scale.rounds + 1))
    seconds = {contestant.name: 0.0 for contestant in both}
    others_s = 0.0
    for index in range(scale.rounds + 1):
        work = [(models[i % len(models)].name, _request(30, index * scale.per_round + i)) for i in range(scale.per_round)]
        for contestant in both if index % 2 else both[::-1]:
            before, own = busy_seconds(), contestant.cpu_s + time.process_time()
            took = _round(contestant, work, scale.callers)
            if index:  # the first round warms both
                seconds[contestant.name] += took
                others_s += max(0.0, busy_seconds() - before - (contestant.cpu_s + time.process_time() - own))
            step()
    requests = scale.rounds * scale.per_round
    return {
        "flatshare_requests_s": requests / seconds["flatshare"],
        "triton_requests_s": requests / seconds["triton"],
        "python_throughput_ratio": seconds["triton"] / seconds["flatshare"],
        "others_cores": others_s / sum(seconds.values()),
    }


def _round(contestant: Contestant, work: list[tuple[str, bytes]], callers: int) -> float:
    pending, lock, failures = iter(work), threading.Lock(), list[Exception]()

    def call() -> None:
        try:
            with PlainCaller.to_port(contestant.port) as caller:
                while True:
                    with lock:
                        item = next(pending, None)
                    if item is None:
                        return
                    status, answer = caller.request("POST", f"/models/{item[0]}/invoke", item[1])
                    if status != 200:
                        raise RuntimeError(f"{contestant.name}: {status} {answer[:300]!r}")
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


def _ensure_loaded(both: tuple[Contestant, Contestant], models: list[Path]) -> None:
    for contestant in both:
        for folder in models:
            contestant.ensure_loaded(folder.name, folder)


def _cold(both: tuple[Contestant, Contestant], models: list[Path], begin: Steps) -> dict[str, float]:
    """Unloaded, loaded again and asked: what a request waits for a model that had left memory. Both have its files in the page cache."""
    _ensure_loaded(both, models)
    step = begin("cold starts", 2 * len(models))
    series: dict[str, list[float]] = {contestant.name: [] for contestant in both}
    for folder in models:
        for contestant in both:
            contestant.unload(folder.name)
            started = time.perf_counter()
            contestant.load(folder.name, folder)
            contestant.invoke(folder.name, _request(30, 1))
            series[contestant.name].append(1e3 * (time.perf_counter() - started))
            step()
    ours, theirs = median(series["flatshare"]), median(series["triton"])
    return {"flatshare_cold_p50_ms": ours, "triton_cold_p50_ms": theirs, "python_cold_ratio": ours / theirs}


def _request(tokens: int, seed: int) -> bytes:
    ids = np.random.default_rng(seed).integers(0, 15_000, tokens)
    fields = {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, tokens], "data": ids}]}
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
