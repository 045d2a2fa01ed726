"""Twice what a machine can keep, Zipf, and a store that takes 200 ms for each question: by value, and by plain LRU in the same server.

*The thrash case.* Disk and memory are both too small: the disk keeps half of the catalogue's bytes, memory less by what two fetches
under way may take, so a miss is a fetch (three questions and the bytes), two at a time, and LRU's misses are several times what the
link bears. (If the disk holds everything, a miss costs one question, 200 ms, and with a second to wait nobody is ever late.)

*Two catalogues.* *Mixed* is what the story's vendor keeps per customer: a query and a document encoder, two classifiers that are heads on a
common trunk, and a writer with weights of its own. Customers are asked by Zipf. A message asks each of a customer's models once, and its
reply, as it is typed, the writer at three pauses more. *Equal* is the other benchmarks' encoders, by Zipf.

*Three series* of the same requests at the same moments. `plain`: a server that knows least-recently-used and nothing else. No deadline is
sent, so whoever comes gets in line, and the caller's own clock judges; one line for all instead of fair shares; nothing is fetched ahead.
`lru`: the same order, all else as it is by default, deadlines known: what it is better by is not the order's. `value`: the default.
One load per model whoever asks for it, batches, and the bounds of what is under way are the engine's, and the same in all three.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatshare.bench.complete import KEYSTROKE_TOKENS, write_tuned
from flatshare.bench.flan import write_flan
from flatshare.bench.heads import write_heads
from flatshare.bench.numbers import median
from flatshare.bench.server import ENDPOINT, MAPPED_ONLY, RunningServer, start_server
from flatshare.bench.slow_store import BUCKET, SlowStore, slow_store
from flatshare.bench.story import ROOMY, Results, Steps
from flatshare.bench.tenants import Tenant, base_checkpoint, text_of, write_tenants
from flatshare.bench.traffic import Answer, Body, at_random_moments
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.ids import ArtifactUri
from flatshare.core.sizes import MIB
from flatshare.store.tensors import TensorStore

DEADLINE_MS = 1_000.0
_ROLES = {"query": 1, "document": 1, "intent": 1, "topic": 1, "writer": 4}
"""A customer's models, and how many requests a message brings for each."""
_ENCODERS, _CLASSIFIERS, _WRITER = ("query", "document"), ("intent", "topic"), "writer"
_RPS = {"equal": 30.0, "mixed": 15.0}  # a writer's answer takes eight steps: a quarter of two cores' work either way
_STORE_S = 0.2
_UNMEASURED = 2 / 3  # of the time that is measured, before it: until the disk holds what the order wants there
_FETCHES = 2  # at a time, by default
_OVERHEAD_BYTES = 150 * MIB  # engine, sessions, tokenizers and workspaces: what an instance takes besides its models


@dataclass(frozen=True, slots=True)
class Series:
    """A server's settings, and whether its callers say how long they can wait."""

    name: str
    settings: str
    has_deadlines: bool


PLAIN = Series(
    "plain",
    MAPPED_ONLY
    + """order = "lru"
tenant_pattern = "()"
[queue]
max_waiting_per_tenant = 512
max_waiting_loads_per_tenant = 256
[disk]
prefetch_every_s = 1e9
""",
    has_deadlines=False,
)
SERIES = (PLAIN, Series("lru", MAPPED_ONLY + 'order = "lru"\n', has_deadlines=True), Series("value", MAPPED_ONLY, has_deadlines=True))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models below one prefix, and how likely each is asked."""

    name: str
    prefix: Path
    targets: tuple[str, ...]
    chances: NDArray[np.float64]

    def question(self, number: int, chosen: NDArray[np.int64]) -> tuple[str, Body]:
        target = self.targets[chosen[number]]
        if target.endswith(_WRITER):
            return target, {"inputs": text_of(30, number), "parameters": {"max_tokens": KEYSTROKE_TOKENS}}
        return target, text_of(30, number)


def run(folder: Path, equal: Catalogue, customers: int, seconds: float, results: Results, begin: Steps) -> None:
    """In-deadline answers by value ÷ those by plain LRU, for both catalogues. The first two fifths are not measured."""
    mixed = _mixed(folder / "customers", customers, begin)
    for catalogue in (mixed, equal):
        with slow_store(catalogue.prefix, _STORE_S) as store:
            place = _Place(folder / f"thrash-{catalogue.name}", catalogue, store)
            place.import_all(begin)
            step, good = begin(f"thrashing, {catalogue.name} models", len(SERIES)), {}
            for series in SERIES:
                good[series.name] = _in_time_share(place, series, seconds, results)
                step()
            results.put(f"thrash_{catalogue.name}_ratio", good["value"] / max(1e-3, good["plain"]), 3)
    results.put("thrash_goodput_ratio", results.values["thrash_mixed_ratio"], 3)


def equal_models(prefix: Path, tenants: list[Tenant]) -> Catalogue:
    """Asked by Zipf in an order that chance decided."""
    order = np.random.default_rng(3).permutation(len(tenants))
    return Catalogue("equal", prefix, tuple(tenants[index].target for index in order), _zipf(len(tenants)))


def _mixed(prefix: Path, customers: int, begin: Steps) -> Catalogue:
    names = [f"customer-{index:02d}" for index in range(customers)]
    step, base = begin("writing customers' models", customers), base_checkpoint()
    encoders = [Tenant(f"{name}/{role}", 100 * index + place) for index, name in enumerate(names) for place, role in enumerate(_ENCODERS)]
    for _ in write_tenants(base, prefix, encoders):
        pass
    _write_classifiers(base, prefix, [f"{name}/{role}" for name in names for role in _CLASSIFIERS])
    flan = write_flan(prefix.parent / "flan")
    for index, name in enumerate(names):
        write_tuned(flan, prefix / name / _WRITER, index)
        step()
    targets = tuple(f"{name}/{role}" for name in names for role in _ROLES)
    return Catalogue("mixed", prefix, targets, mixed_chances(customers))


def mixed_chances(customers: int) -> NDArray[np.float64]:
    """Of each model of each customer, customer by customer."""
    asked = np.array(list(_ROLES.values())) / sum(_ROLES.values())
    return np.asarray(np.outer(_zipf(customers), asked).ravel(), np.float64)


def _write_classifiers(base: Path, prefix: Path, targets: list[str]) -> None:
    if (prefix / targets[-1]).exists():
        return
    heads = prefix.parent / "heads"
    shutil.rmtree(heads, ignore_errors=True)
    for place, target in zip(write_heads(base, heads, len(targets)), targets, strict=True):
        shutil.rmtree(prefix / target, ignore_errors=True)
        place.rename(prefix / target)


def _zipf(count: int) -> NDArray[np.float64]:
    weights = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum(), np.float64)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a catalogue is served from."""

    folder: Path
    catalogue: Catalogue
    store: SlowStore

    def import_all(self, begin: Steps) -> None:
        """Every model is on this disk afterwards, in a store that each series begins with a copy of."""
        targets, usage = self.catalogue.targets, TensorStore(self._whole / "store").usage()
        step = begin(f"importing {self.catalogue.name} models", len(targets))
        if usage.models < len(targets):
            with self._server(self._whole, ROOMY) as server:
                for target in targets:
                    server.invoke(target, "hello")
                    step()

    @contextmanager
    def server(self, series: Series) -> Iterator[RunningServer]:
        """With a disk for half of the bytes that all models take, and memory for what is not passing through."""
        disk_bytes, data = self.prepare()
        settings = self.folder / f"{series.name}.toml"
        settings.write_text(series.settings)
        memory_bytes = disk_bytes - _FETCHES * self._largest_bytes() + _OVERHEAD_BYTES
        with self._server(data, str(memory_bytes), ("--settings", str(settings), "--disk", str(disk_bytes))) as server:
            yield server

    def prepare(self) -> tuple[int, Path]:
        """Half of the bytes that all models take, and a data folder with the models that are asked for most: no more than these bytes."""
        data = self.folder / "run"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(self._whole / "store", data / "store", copy_function=_link_packs, ignore=shutil.ignore_patterns("instances"))
        return self._halved(TensorStore(data / "store")), data

    @contextmanager
    def _server(self, data: Path, memory: str, options: tuple[str, ...] = ()) -> Iterator[RunningServer]:
        server = start_server(data, memory, options=options, environment=self.store.environment)
        try:
            ensure_endpoint(server.sagemaker, EndpointPlan(ENDPOINT, f"s3://{BUCKET}/"))
            server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
            yield server
        finally:
            server.close()

    def _halved(self, store: TensorStore) -> int:
        """What is asked for least leaves, a customer at a time, until half of the bytes are there. Says how many those are."""
        half_bytes = store.catalog.disk_bytes() // 2
        for owner in reversed(dict.fromkeys(target.partition("/")[0] for target in self.catalogue.targets)):
            if store.catalog.disk_bytes() <= half_bytes:
                break
            for target in self.catalogue.targets:
                if target.startswith(f"{owner}/"):
                    store.catalog.forget_artifact(ArtifactUri(f"s3://{BUCKET}/{target}"))
            store.collect()
        return half_bytes

    @property
    def _whole(self) -> Path:
        return self.folder / "whole"

    def _largest_bytes(self) -> int:
        """Of the artifacts: room that a fetch takes on the disk until it is imported."""
        folders = [self.catalogue.prefix / target for target in self.catalogue.targets]
        return max(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) for folder in folders)


def _link_packs(source: str, target: str) -> None:
    """A pack is never written to: only the catalog says what of it is wanted."""
    if source.endswith(".pack"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _in_time_share(place: _Place, series: Series, seconds: float, results: Results) -> float:
    """Of one run, by the callers' clock."""
    catalogue, name = place.catalogue, f"thrash_{place.catalogue.name}_{series.name}"
    chosen = np.random.default_rng(5).choice(len(catalogue.targets), size=100_000, p=catalogue.chances)
    with place.server(series) as server:
        began_s, sent_bytes = time.perf_counter(), place.store.sent_bytes
        found = at_random_moments(
            server,
            lambda number: catalogue.question(number, chosen),
            rate_rps=_RPS[catalogue.name],
            seconds=_UNMEASURED * seconds + seconds,
            deadline_ms=DEADLINE_MS if series.has_deadlines else None,
        )
        counts, lasted_s = server.status()["decision_counts"], time.perf_counter() - began_s
    measured = [answer for answer in found if answer.sent_s >= began_s + _UNMEASURED * seconds]
    share = sum(answer.is_in_time(DEADLINE_MS) for answer in measured) / len(measured)
    results.put(f"{name}_in_time_share", share, 3)
    results.put(f"{name}_loads_per_s", counts.get("load", 0) / lasted_s)
    results.put(f"{name}_fetched_mb_per_s", (place.store.sent_bytes - sent_bytes) / 1e6 / lasted_s, 0)
    results.put(f"{name}_late_or_refused_p50_ms", _late_p50_ms(measured), 0)
    return share


def _late_p50_ms(measured: list[Answer]) -> float:
    late = [1e3 * answer.took_s for answer in measured if not answer.is_in_time(DEADLINE_MS)]
    return median(late) if late else 0.0
