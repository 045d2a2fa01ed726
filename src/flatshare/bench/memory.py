"""`flatshare bench memory`: what neighbours, floods, cold loads and overload cost, and what memory comes back, on a real server."""

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import orjson

from flatshare.bench import memory_peers, promoted, thrash
from flatshare.bench.memory_peers import NO_PEERS, Peers
from flatshare.bench.numbers import median, percentile
from flatshare.bench.server import PlainCaller, RunningServer, running_server
from flatshare.bench.story import Results, Steps, _after_unload, import_all
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants
from flatshare.bench.traffic import Pick, at_random_moments, flood

TARGETS = {
    "memory_after_unload_ratio": 1.05, "neighbour_added_services": 1.5, "neighbour_load_ratio": 1.2,
}  # fmt: skip
AT_LEAST = {"overload_goodput_ratio": 0.95, "thrash_goodput_ratio": 1.5} | promoted.TARGETS
ROOMY = "6GiB"
_VICTIM_RPS, _RARE_RPS, _FLOOD_CALLERS = 5.0, 0.3, 16
_BULK_CALLERS, _BULK_TEXTS = 4, 64
_DEADLINE_MS = 1_000.0
_CGROUP = Path("/sys/fs/cgroup/memory")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Scale:
    """Seconds of each measurement; `quick` is for trying the benchmark out, not for figures."""

    seconds: float = 40.0
    overload_s: float = 60.0
    tenants: int = 24
    customers: int = 12
    """Of the catalogue of unequal models."""
    promoted: int = 8
    """Models that get prepacked copies."""
    promoted_calls: int = 400


QUICK = Scale(seconds=8.0, overload_s=10.0, customers=6, promoted=3, promoted_calls=60)


@dataclass(frozen=True, slots=True)
class Ground:
    """What every part measures on."""

    folder: Path
    """On a local disk with 8 GB free."""
    scale: Scale
    catalogue: list[Tenant]
    results: Results
    begin: Steps
    peers: Peers = NO_PEERS

    @property
    def prefix(self) -> Path:
        return self.folder / "models"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @contextmanager
    def server(self) -> Iterator[RunningServer]:
        """With room for all models, which are imported and in memory."""
        with running_server(self.data, self.prefix, ROOMY) as server:
            import_all(server, self.catalogue, self.begin)
            yield server

    def fill_store(self) -> None:
        """All models are on the disk afterwards, and nothing is in memory."""
        with self.server():
            return


def run(folder: Path, scale: Scale, begin: Steps, only: Collection[str] = (), peers: Peers = NO_PEERS) -> dict[str, float]:
    """Measure the parts named, or all, in `folder`; what comes back and what fits on `peers` too."""
    ground = Ground(folder, scale, tenants(scale.tenants), Results(), begin, peers)
    step = begin("writing checkpoints", len(ground.catalogue))
    for _ in write_tenants(base_checkpoint(), ground.prefix, ground.catalogue):
        step()
    for name, part in PARTS.items():
        if not only or name in only:
            part(ground)
    return ground.results.values


def _unload(ground: Ground) -> None:
    with ground.server() as server:
        _after_unload(server, ground.catalogue, ground.results, ground.begin)


def _neighbours(ground: Ground) -> None:
    catalogue, results = ground.catalogue, ground.results
    step = ground.begin("a victim alone and beside floods", 5)
    victim, others = catalogue[0].target, [tenant.target for tenant in catalogue[2:4]]  # one other tenant: query and document
    with ground.server() as server:
        alone = _victim_p99_ms(server, victim, ground.scale, step)
        results.put("victim_alone_p99_ms", alone, 1)
        with flood(server, others, callers=_FLOOD_CALLERS, tokens=30) as answers:
            beside = _victim_p99_ms(server, victim, ground.scale, step)
        service_ms = median([answer.model_ms for answer in answers])
        results.put("victim_beside_flood_p99_ms", beside, 1)
        results.put("flood_service_p50_ms", service_ms, 1)
        results.put("flood_answers_per_s", len(answers) / ground.scale.seconds, 1)
        results.put("neighbour_added_services", (beside - alone) / service_ms)
        with flood(server, others, callers=_FLOOD_CALLERS, tokens=512):
            results.put("victim_beside_long_flood_p99_ms", _victim_p99_ms(server, victim, ground.scale, step), 1)
        # Who asks so rarely finds both workers at calls of several seconds each, unless those give way.
        with flood(server, others, callers=_BULK_CALLERS, tokens=512, texts=_BULK_TEXTS) as answers:
            results.put("rare_victim_beside_bulk_p99_ms", _victim_p99_ms(server, victim, ground.scale, step, _RARE_RPS), 1)
        results.put("bulk_service_p50_ms", median([answer.model_ms for answer in answers]), 1)
        with _loading_in_a_loop(server, catalogue[12:]) as loads:
            results.put("neighbour_load_ratio", _victim_p99_ms(server, victim, ground.scale, step) / alone)
        results.put("neighbour_loads_per_s", len(loads) / ground.scale.seconds, 1)


def _victim_p99_ms(server: RunningServer, victim: str, scale: Scale, step: Callable[[], None], rate_rps: float = _VICTIM_RPS) -> float:
    answers = at_random_moments(server, lambda number: (victim, text_of(30, number)), rate_rps=rate_rps, seconds=scale.seconds)
    step()
    return 1e3 * percentile([answer.took_s for answer in answers], 0.99)


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


def _overload(ground: Ground) -> None:
    scale, results, step = ground.scale, ground.results, ground.begin("peak, and twice the peak", 2)
    targets = [tenant.target for tenant in ground.catalogue[:20]]
    with ground.server() as server:
        with flood(server, targets, callers=_FLOOD_CALLERS, tokens=30) as answers:
            threading.Event().wait(scale.seconds)
        peak_rps = len(answers) / scale.seconds
        step()
        pick: Pick = lambda number: (targets[number % len(targets)], text_of(30, number))  # noqa: E731
        found = at_random_moments(server, pick, rate_rps=2 * peak_rps, seconds=scale.overload_s, deadline_ms=_DEADLINE_MS)
    good = sum(answer.is_in_time(_DEADLINE_MS) for answer in found)
    step()
    results.put("peak_rps", peak_rps, 1)
    results.put("overload_answers_in_time_per_s", good / scale.overload_s, 1)
    results.put("overload_late_answers_share", sum(answer.status == 200 for answer in found) / max(1, good) - 1, 3)
    refused = [1e3 * answer.took_s for answer in found if answer.status != 200]
    results.put("overload_refusal_p50_ms", median(refused) if refused else 0.0)
    results.put("overload_goodput_ratio", good / scale.overload_s / peak_rps, 3)


def _thrash(ground: Ground) -> None:
    equal = thrash.equal_models(ground.prefix, ground.catalogue)
    thrash.run(ground.folder, equal, ground.scale.customers, 1.5 * ground.scale.seconds, ground.results, ground.begin)


def _in_one_gib(ground: Ground) -> None:
    """How many tenants are resident and answer at most twice as slowly, at the 99th percentile, as without the limit."""
    catalogue, prefix, results, step = ground.catalogue, ground.prefix, ground.results, ground.begin("models in 1 GiB", 3)
    if not (_CGROUP / "cgroup.procs").exists():
        return  # only a cgroup of the first version that we may write is known here
    ground.fill_store()
    step()
    group = _CGROUP / f"flatshare-{uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(_GIB))
        inside = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        with running_server(ground.data, prefix, "900MiB", before=inside) as server:
            for tenant in catalogue:
                server.invoke(tenant.target, "hello")
            uris = {model["uri"] for model in server.status()["models"]}
            resident = [tenant for tenant in catalogue if f"file://{prefix}/{tenant.target}" in uris]
            limited = _round_p99_ms(server, resident)
    finally:
        _remove(group)
    step()
    with ground.server() as server:
        free = _round_p99_ms(server, resident)
    step()
    results.put("resident_in_1gib", len(resident), 0)
    results.put("p99_in_1gib_ratio", limited / free)
    results.put("models_in_1gib", len(resident) if limited <= 2 * free else 0, 0)


def _round_p99_ms(server: RunningServer, catalogue: list[Tenant]) -> float:
    """Several rounds of all models, one caller; the first is not counted."""
    for tenant in catalogue:
        server.invoke(tenant.target, "hello")
    pick: Pick = lambda number: (catalogue[number % len(catalogue)].target, text_of(30, number))  # noqa: E731
    answers = at_random_moments(server, pick, rate_rps=20, seconds=4 * len(catalogue) / 20)
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


def _prepacked(ground: Ground) -> None:
    models, calls = ground.catalogue[: ground.scale.promoted], ground.scale.promoted_calls
    promoted.run(ground.folder, ground.prefix, models, calls, ground.results, ground.begin)


def _peers(ground: Ground) -> None:
    if ground.peers == NO_PEERS:
        return
    ground.fill_store()
    for key, value in memory_peers.run(ground.folder / "peers", ground.data / "store", ground.peers, ground.begin).items():
        ground.results.put(key, value, 3)


PARTS: Mapping[str, Callable[[Ground], None]] = {
    "unload": _unload, "neighbours": _neighbours, "overload": _overload, "thrash": _thrash, "limit": _in_one_gib,
    "prepacked": _prepacked, "peers": _peers,
}  # fmt: skip
"""What can be measured by itself, in the order in which all of it is."""
