"""Twice the budget, Zipf, and a store that takes 200 ms for each question: by value, and by plain LRU, the same server otherwise.

Two catalogues. *Mixed* is what the story's vendor keeps per customer: a query and a document encoder, two classifiers that are heads on a
common trunk, and a writer with weights of its own; customers are asked by Zipf, and each one's models alike. *Equal* is the other
benchmarks' encoders. Two deadlines: 1 s, which a load meets if the line is short, and 200 ms, for callers who type, which none does.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatshare.bench.complete import KEYSTROKE_TOKENS, write_tuned
from flatshare.bench.flan import write_flan
from flatshare.bench.heads import write_heads
from flatshare.bench.server import ENDPOINT, RunningServer, start_server
from flatshare.bench.slow_store import BUCKET, slow_store
from flatshare.bench.story import ROOMY, Results, Steps
from flatshare.bench.tenants import Tenant, base_checkpoint, text_of, write_tenants
from flatshare.bench.traffic import Answer, Body, at_random_moments
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.sizes import MIB
from flatshare.store.tensors import TensorStore

DEADLINES_MS = (1_000.0, 200.0)
_ENCODERS, _CLASSIFIERS, _WRITER = ("query", "document"), ("intent", "topic"), "writer"
_RPS = {"equal": 30.0, "mixed": 15.0}  # a writer's answer takes eight steps: about half of two cores' work either way
_STORE_S = 0.2
_OVERHEAD_BYTES = 150 * MIB  # engine, sessions, tokenizers and workspaces: what an instance takes besides its models


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
    """In-deadline answers by value ÷ those by LRU, for both catalogues, after a third of the time unmeasured."""
    mixed = _mixed(folder / "customers", customers, begin)
    for catalogue in (equal, mixed):
        with slow_store(catalogue.prefix, _STORE_S) as environment:
            place = _Place(folder / f"thrash-{catalogue.name}", catalogue, environment)
            budget_bytes = place.imported_bytes(begin) // 2 + _OVERHEAD_BYTES
            step = begin(f"thrashing, {catalogue.name} models", 2 * len(DEADLINES_MS))
            for deadline_ms in DEADLINES_MS:
                good = {}
                for order in ("lru", "value"):
                    good[order] = _in_time_share(place, order, budget_bytes, deadline_ms, seconds, results)
                    step()
                results.put(f"thrash_{catalogue.name}_{deadline_ms:.0f}ms_ratio", good["value"] / max(1e-3, good["lru"]), 3)
    results.put("thrash_goodput_ratio", results.values[f"thrash_mixed_{DEADLINES_MS[0]:.0f}ms_ratio"], 3)


def equal_models(prefix: Path, tenants: list[Tenant]) -> Catalogue:
    """Asked by Zipf in an order that chance decided."""
    order = np.random.default_rng(3).permutation(len(tenants))
    return Catalogue("equal", prefix, tuple(tenants[index].target for index in order), _zipf(len(tenants)))


def _mixed(prefix: Path, customers: int, begin: Steps) -> Catalogue:
    names = [f"customer-{index:02d}" for index in range(customers)]
    roles = (*_ENCODERS, *_CLASSIFIERS, _WRITER)
    step, base = begin("writing customers' models", customers), base_checkpoint()
    wanted = [Tenant(f"{name}/{role}", 100 * index + place) for index, name in enumerate(names) for place, role in enumerate(_ENCODERS)]
    for _ in write_tenants(base, prefix, wanted):
        pass
    _write_classifiers(base, prefix, [f"{name}/{role}" for name in names for role in _CLASSIFIERS])
    flan = write_flan(prefix.parent / "flan")
    for index, name in enumerate(names):
        write_tuned(flan, prefix / name / _WRITER, index)
        step()
    targets = tuple(f"{name}/{role}" for name in names for role in roles)
    return Catalogue("mixed", prefix, targets, np.repeat(_zipf(customers) / len(roles), len(roles)))


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

    data: Path
    catalogue: Catalogue
    environment: dict[str, str]

    def imported_bytes(self, begin: Steps) -> int:
        """Distinct bytes of all models, each of which is on this disk afterwards."""
        targets = self.catalogue.targets
        step = begin(f"importing {self.catalogue.name} models", len(targets))
        if not self.data.exists() or self._usage_models() < len(targets):
            with self.server(ROOMY) as server:
                for target in targets:
                    server.invoke(target, "hello")
                    step()
        return TensorStore(self.data / "store").usage().distinct_bytes

    @contextmanager
    def server(self, memory: str, order: str = "value") -> Iterator[RunningServer]:
        settings = self.data.parent / f"{order}.toml"
        settings.write_text(f'[memory]\norder = "{order}"\n')
        server = start_server(self.data, memory, options=("--settings", str(settings)), environment=self.environment)
        try:
            ensure_endpoint(server.sagemaker, EndpointPlan(ENDPOINT, f"s3://{BUCKET}/"))
            server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
            yield server
        finally:
            server.close()

    def _usage_models(self) -> int:
        return TensorStore(self.data / "store").usage().models


def _in_time_share(place: _Place, order: str, budget_bytes: int, deadline_ms: float, seconds: float, results: Results) -> float:
    """Of one run. The instances' memory of earlier runs is forgotten, so that each order begins with what it learns itself."""
    catalogue, name = place.catalogue, f"thrash_{place.catalogue.name}_{deadline_ms:.0f}ms_{order}"
    for remembered in (place.data / "store" / "instances").glob("*.hot.json"):
        remembered.unlink()
    with place.server(str(budget_bytes), order) as server:
        chosen = np.random.default_rng(5).choice(len(catalogue.targets), size=100_000, p=catalogue.chances)

        def ask(skipped: int, for_s: float) -> list[Answer]:
            pick = lambda number: catalogue.question(number + skipped, chosen)  # noqa: E731
            return at_random_moments(server, pick, rate_rps=_RPS[catalogue.name], seconds=for_s, deadline_ms=deadline_ms)

        skipped = len(ask(0, seconds / 2))
        before = _loads(server)
        found = ask(skipped, seconds)
        share = sum(answer.is_in_time(deadline_ms) for answer in found) / len(found)
        results.put(f"{name}_loads_per_s", (_loads(server) - before) / seconds)
        results.put(f"{name}_in_time_share", share, 3)
    return share


def _loads(server: RunningServer) -> int:
    return int(server.status()["decision_counts"].get("load", 0))
