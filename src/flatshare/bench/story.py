"""`flatshare bench story`: the main job against its targets, on a real server, in one run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.bench import cold, load
from flatshare.bench.bare import BareEngine
from flatshare.bench.numbers import median, percentile
from flatshare.bench.server import MAPPED_ONLY, RunningServer, running_server
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants
from flatshare.store.tensors import TensorStore

ROOMY = "6GiB"  # all 48 fit
TIGHT = "700MiB"  # about twenty of the 48 fit, so each turn through them meets only cold ones
LENGTHS = (30, 250, 512)

TARGETS = {
    "cold_start_p50_ms": 50, "cold_start_p99_ms": 150, "cold_start_disk_p99_ms": 250, "anonymous_mb_per_model": 1.0,
    "added_latency_p50_ms": 1.0, "server_cpu_vs_engine": 1.10, "memory_after_unload_ratio": 1.05, "distinct_share": 0.55,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured; `quick` is for trying the benchmark out, not for figures."""

    tenants: int = 24
    cold_samples: int = 336
    disk_samples: int = 48
    latency_calls: int = 300
    rounds: int = 5
    per_round: int = 400


QUICK = Scale(tenants=24, cold_samples=48, disk_samples=8, latency_calls=40, rounds=1, per_round=100)
Steps = Callable[[str, int], Callable[[], None]]
"""Begin a step of so many parts; call the result after each part."""


@dataclass(slots=True)
class Results:
    """The figures by key, filled as they come."""

    values: dict[str, float] = field(default_factory=dict)

    def put(self, key: str, value: float, digits: int = 2) -> None:
        self.values[key] = round(value, digits)


def run(folder: Path, scale: Scale, begin: Steps) -> dict[str, float]:
    """Measure everything in `folder`, which should be on a local disk with 8 GB free."""
    results = Results()
    catalogue = tenants(scale.tenants)
    prefix, data = folder / "models", folder / "data"
    step = begin("writing checkpoints", len(catalogue))
    for _ in write_tenants(base_checkpoint(), prefix, catalogue):
        step()
    with running_server(data, prefix, ROOMY) as server:
        import_all(server, catalogue, begin)
        results.put("import_s_per_model", _mean_import_s(server))
    usage = TensorStore(data / "store").usage()
    results.put("distinct_share", usage.distinct_share, 4)
    with running_server(data, prefix, ROOMY) as server:
        _anonymous_per_model(server, catalogue, results, begin)
    with running_server(data, prefix, ROOMY) as server:
        _speed(server, BareEngine(data / "store", prefix), catalogue[:20], scale, results, begin)
        _lengths(server, catalogue, results, begin)
    with running_server(data, prefix, ROOMY) as server:
        _after_unload(server, catalogue, results, begin)
    by_age = MAPPED_ONLY + 'order = "lru"\n'  # so that each turn through the models meets only such as were evicted; loads are the same
    with running_server(data, prefix, TIGHT, settings=by_age) as server:
        _cold_starts(server, catalogue, data / "store", scale, results, begin)
    return results.values


def import_all(server: RunningServer, catalogue: list[Tenant], begin: Steps) -> None:
    """Call every model once, so that it is imported."""
    step = begin("importing", len(catalogue))
    for tenant in catalogue:
        server.invoke(tenant.target, "hello")
        step()


def _mean_import_s(server: RunningServer) -> float:
    took = [float(d["took_ms"]) / 1e3 for d in server.status()["decisions"] if d["kind"] == "load"]
    return sum(took) / len(took)


def _anonymous_per_model(server: RunningServer, catalogue: list[Tenant], results: Results, begin: Steps) -> None:
    step = begin("private memory per model", len(catalogue))
    before = server.memory()
    for tenant in catalogue:
        for tokens in (30, 512):
            server.invoke(tenant.target, text_of(tokens, tenant.seed))
        step()
    after = server.memory()
    results.put("anonymous_mb_per_model", (after.anonymous_mb - before.anonymous_mb) / len(catalogue), 3)
    results.put("anonymous_mb_before", before.anonymous_mb, 1)
    results.put("anonymous_mb_after", after.anonymous_mb, 1)
    results.put("maps_per_model", (after.maps - before.maps) / len(catalogue))
    results.put("descriptors_per_model", (after.descriptors - before.descriptors) / len(catalogue))


def _speed(server: RunningServer, bare: BareEngine, models: list[Tenant], scale: Scale, results: Results, begin: Steps) -> None:
    step = begin("latency, one caller", scale.latency_calls + 2 * len(models))
    one = load.one_caller(server, bare, models, scale.latency_calls, step)
    results.put("engine_p50_ms", 1e3 * median(one.bare))
    results.put("added_latency_p50_ms", 1e3 * median([p - b for p, b in zip(one.plain, one.bare, strict=True)]), 3)
    results.put("added_latency_p99_ms", 1e3 * (percentile(one.plain, 0.99) - percentile(one.bare, 0.99)), 3)
    results.put("boto3_added_latency_p50_ms", 1e3 * median([p - b for p, b in zip(one.boto3, one.bare, strict=True)]), 3)
    step = begin("throughput, 16 callers", scale.rounds + 1)
    many = load.many_callers(server, bare, models, callers=16, rounds=scale.rounds, per_round=scale.per_round, progress=step)
    results.put("requests_per_s", many.requests / many.server_seconds, 1)
    results.put("engine_requests_per_s", many.requests / many.bare_seconds, 1)
    results.put("server_cpu_vs_engine", many.server_cpu_seconds / many.bare_cpu_seconds, 3)
    results.put("server_cpu_ms_per_request", 1e3 * many.server_cpu_seconds / many.requests)
    results.put("engine_cpu_ms_per_request", 1e3 * many.bare_cpu_seconds / many.requests)
    results.put("other_programs_cores", many.others_cores)


def _lengths(server: RunningServer, catalogue: list[Tenant], results: Results, begin: Steps) -> None:
    step = begin("30, 250 and 512 tokens", len(LENGTHS))
    target = catalogue[0].target
    for tokens in LENGTHS:
        cached = []
        for index in range(30):
            started = time.perf_counter()
            server.invoke(target, text_of(tokens, index))
            cached.append(time.perf_counter() - started)
        five = [s for index in range(10) for s in load.at_once(server, target, [text_of(tokens, 5 * index + i) for i in range(5)])]
        results.put(f"cached_{tokens}_ms", 1e3 * median(cached))
        results.put(f"five_at_once_{tokens}_ms", 1e3 * median(five))
        step()


def _after_unload(server: RunningServer, catalogue: list[Tenant], results: Results, begin: Steps) -> None:
    """Serve and unload one model, measure; serve and unload all, measure again."""
    step = begin("memory after unloading", len(catalogue))
    marks = []
    for group in (catalogue[:1], catalogue):
        for tenant in group:
            for tokens in (30, 512):
                server.invoke(tenant.target, text_of(tokens, tenant.seed))
            if group is catalogue:
                step()
        server.unload_all()
        marks.append(server.memory().anonymous_mb)
    results.put("anonymous_mb_after_one_unloaded", marks[0], 1)
    results.put("anonymous_mb_after_all_unloaded", marks[1], 1)
    results.put("memory_after_unload_ratio", marks[1] / marks[0], 3)


def _cold_starts(server: RunningServer, catalogue: list[Tenant], store_dir: Path, scale: Scale, results: Results, begin: Steps) -> None:
    for tenant in catalogue:  # one turn, so that every pack is in the page cache and every model has been evicted
        server.invoke(tenant.target, "hello")
    warm = cold.warm_page_cache(server, catalogue, scale.cold_samples, begin("cold starts, page cache warm", scale.cold_samples))
    _put_cold(results, "cold_start", warm)
    disk = cold.from_disk(server, catalogue, store_dir, scale.disk_samples, begin("cold starts from disk", scale.disk_samples))
    _put_cold(results, "cold_start_disk", disk)


def _put_cold(results: Results, name: str, starts: cold.ColdStarts) -> None:
    results.put(f"{name}_p50_ms", 1e3 * median(starts.seconds), 1)
    results.put(f"{name}_p99_ms", 1e3 * percentile(starts.seconds, 0.99), 1)
    results.put(f"{name}_samples", len(starts.seconds), 0)
    results.put(f"{name}_models", starts.distinct_models, 0)
