"""`flatshare bench memory`: what neighbours, floods, cold loads and overload cost, and what memory comes back, on a real server."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import orjson

from flatshare.bench import memory_peers
from flatshare.bench.memory_peers import NO_PEERS, Peers
from flatshare.bench.numbers import median, percentile
from flatshare.bench.server import ENDPOINT, PlainCaller, RunningServer, running_server, start_server
from flatshare.bench.slow_store import BUCKET, slow_store
from flatshare.bench.story import Results, Steps, _after_unload, import_all
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants
from flatshare.bench.traffic import Answer, at_random_moments, flood
from flatshare.client.deploy import EndpointPlan, ensure_endpoint

TARGETS = {
    "memory_after_unload_ratio": 1.05, "neighbour_added_services": 1.5, "neighbour_load_ratio": 1.2,
}  # fmt: skip
AT_LEAST = {"overload_goodput_ratio": 0.95, "thrash_goodput_ratio": 1.5}
ROOMY, HALF = "6GiB", "700MiB"
_VICTIM_RPS, _FLOOD_CALLERS = 5.0, 16
_DEADLINE_MS = 1_000.0
_CGROUP = Path("/sys/fs/cgroup/memory")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Scale:
    """Seconds of each measurement; `quick` is for trying the benchmark out, not for figures."""

    seconds: float = 40.0
    overload_s: float = 60.0
    tenants: int = 24


QUICK = Scale(seconds=8.0, overload_s=10.0)


def run(folder: Path, scale: Scale, begin: Steps, peers: Peers = NO_PEERS) -> dict[str, float]:
    """Measure everything in `folder`, which should be on a local disk with 14 GB free; memory and `models_in_1gib` on `peers` too."""
    results, catalogue = Results(), tenants(scale.tenants)
    prefix, data = folder / "models", folder / "data"
    step = begin("writing checkpoints", len(catalogue))
    for _ in write_tenants(base_checkpoint(), prefix, catalogue):
        step()
    with running_server(data, prefix, ROOMY) as server:
        import_all(server, catalogue, begin)
        _after_unload(server, catalogue, results, begin)
    with running_server(data, prefix, ROOMY) as server:
        import_all(server, catalogue, begin)
        _neighbours(server, catalogue, scale, results, begin)
        _overload(server, catalogue[:20], scale, results, begin)
    with slow_store(prefix, 0.2) as environment:
        _thrash(folder, catalogue, environment, scale, results, begin)
    _in_one_gib(data, prefix, catalogue, results, begin)
    return results.values | memory_peers.run(folder / "peers", data / "store", peers, begin)


def _neighbours(server: RunningServer, catalogue: list[Tenant], scale: Scale, results: Results, begin: Steps) -> None:
    step = begin("a victim alone and beside floods", 4)
    victim, others = catalogue[0].target, [tenant.target for tenant in catalogue[2:4]]  # one other tenant: query and document

    def asked() -> list[Answer]:
        pick = lambda number: (victim, text_of(30, number))  # noqa: E731
        return at_random_moments(server, pick, rate_rps=_VICTIM_RPS, seconds=scale.seconds, callers=8)

    def p99_ms(answers: list[Answer]) -> float:
        step()
        return 1e3 * percentile([answer.took_s for answer in answers], 0.99)

    alone = p99_ms(asked())
    results.put("victim_alone_p99_ms", alone, 1)
    with flood(server, others, callers=_FLOOD_CALLERS, tokens=30) as answers:
        beside = p99_ms(asked())
    service_ms = median([answer.model_ms for answer in answers])
    results.put("victim_beside_flood_p99_ms", beside, 1)
    results.put("flood_service_p50_ms", service_ms, 1)
    results.put("neighbour_added_services", (beside - alone) / service_ms)
    with flood(server, others, callers=_FLOOD_CALLERS, tokens=512):
        results.put("victim_beside_long_flood_p99_ms", p99_ms(asked()), 1)
    with _loading_in_a_loop(server, catalogue[12:]) as loads:
        results.put("neighbour_load_ratio", p99_ms(asked()) / alone)
    results.put("neighbour_loads_per_s", len(loads) / scale.seconds, 1)


@contextmanager
def _loading_in_a_loop(server: RunningServer, catalogue: list[Tenant]) -> Iterator[list[str]]:
    """Unload and load other tenants' models, one after the other without a pause, by the container contract."""
    status, is_over, loads = server.status(), threading.Event(), list[str]()
    wanted = {tenant.target for tenant in catalogue}
    models = [model for model in status["models"] if any(model["uri"].endswith(f"/{target}") for target in wanted)]

    def drive() -> None:
        with PlainCaller.to_socket(status["socket"]) as caller:
            for model in itertools.cycle(models):
                if is_over.is_set():
                    return
                caller.request("DELETE", f"/models/{model['key']}", b"")
                body = {"model_name": model["key"], "url": model["uri"], "root": model["uri"].rsplit("/", 2)[0] + "/"}
                caller.request("POST", "/models", orjson.dumps(body))
                loads.append(model["key"])

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield loads
    finally:
        is_over.set()
        thread.join()


def _overload(server: RunningServer, models: list[Tenant], scale: Scale, results: Results, begin: Steps) -> None:
    step = begin("peak, and twice the peak", 2)
    targets = [tenant.target for tenant in models]
    with flood(server, targets, callers=_FLOOD_CALLERS, tokens=30) as answers:
        threading.Event().wait(scale.seconds)
    peak_rps = len(answers) / scale.seconds
    step()
    pick: Callable[[int], tuple[str, str]] = lambda number: (targets[number % len(targets)], text_of(30, number))  # noqa: E731
    found = at_random_moments(server, pick, rate_rps=2 * peak_rps, seconds=scale.overload_s, callers=256, deadline_ms=_DEADLINE_MS)
    good = sum(answer.status == 200 and 1e3 * answer.took_s <= _DEADLINE_MS for answer in found)
    step()
    results.put("peak_rps", peak_rps, 1)
    results.put("overload_answers_in_time_per_s", good / scale.overload_s, 1)
    results.put("overload_goodput_ratio", good / scale.overload_s / peak_rps, 3)


def _thrash(folder: Path, catalogue: list[Tenant], environment: dict[str, str], scale: Scale, results: Results, begin: Steps) -> None:
    """Twice the budget, Zipf, and a store that takes 200 ms for each question: by value, and by plain LRU."""
    step = begin("thrashing, by value and by LRU", 2)
    order = np.random.default_rng(3).permutation(len(catalogue))
    weights = 1 / np.arange(1, len(catalogue) + 1)
    chosen = order[np.random.default_rng(5).choice(len(catalogue), size=100_000, p=weights / weights.sum())]
    good = {}
    for policy in ("value", "lru"):
        settings = folder / f"{policy}.toml"
        settings.write_text(f'[memory]\norder = "{policy}"\n')
        server = start_server(folder / "thrash", HALF, options=("--settings", str(settings)), environment=environment)
        try:
            ensure_endpoint(server.sagemaker, EndpointPlan(ENDPOINT, f"s3://{BUCKET}/"))
            server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
            for tenant in catalogue:
                server.invoke(tenant.target, "hello")
            pick: Callable[[int], tuple[str, str]] = lambda number: (catalogue[chosen[number]].target, text_of(30, number))  # noqa: E731
            found = at_random_moments(server, pick, rate_rps=30, seconds=2 * scale.seconds, callers=128, deadline_ms=_DEADLINE_MS)
            good[policy] = sum(answer.status == 200 and 1e3 * answer.took_s <= _DEADLINE_MS for answer in found)
            results.put(f"thrash_{policy}_loads", server.status()["decision_counts"].get("load", 0) - len(catalogue), 0)
            results.put(f"thrash_{policy}_in_time_share", good[policy] / len(found), 3)
        finally:
            server.close()
        step()
    results.put("thrash_goodput_ratio", good["value"] / max(1, good["lru"]), 3)


def _in_one_gib(data: Path, prefix: Path, catalogue: list[Tenant], results: Results, begin: Steps) -> None:
    """How many tenants are resident and answer at most twice as slowly, at the 99th percentile, as without the limit."""
    step = begin("models in 1 GiB", 2)
    with running_server(data, prefix, ROOMY) as server:
        free = _round_p99_ms(server, catalogue)
    step()
    if not (_CGROUP / "cgroup.procs").exists():
        return  # only a cgroup of the first version that we may write is known here
    group = _CGROUP / f"flatshare-{uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(_GIB))
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        with running_server(data, prefix, "900MiB", before=inside) as server:
            for tenant in catalogue:
                server.invoke(tenant.target, "hello")
            uris = {model["uri"] for model in server.status()["models"]}
            resident = [tenant for tenant in catalogue if f"file://{prefix}/{tenant.target}" in uris]
            limited = _round_p99_ms(server, resident)
            results.put("resident_in_1gib", len(resident), 0)
            results.put("p99_in_1gib_ratio", limited / free)
            results.put("models_in_1gib", len(resident) if limited <= 2 * free else 0, 0)
    finally:
        _remove(group)
    step()


def _round_p99_ms(server: RunningServer, catalogue: list[Tenant]) -> float:
    """Several rounds of all models, one caller; the first is not counted."""
    for tenant in catalogue:
        server.invoke(tenant.target, "hello")
    pick: Callable[[int], tuple[str, str]] = lambda number: (catalogue[number % len(catalogue)].target, text_of(30, number))  # noqa: E731
    answers = at_random_moments(server, pick, rate_rps=20, seconds=4 * len(catalogue) / 20, callers=8)
    return 1e3 * percentile([answer.took_s for answer in answers], 0.99)


def _remove(group: Path) -> None:
    """The kernel lets a cgroup go once its last process has ended and been reaped."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            threading.Event().wait(0.1)
        else:
            return
