"""`make demo`: 48 real models behind one endpoint, half of them in memory at a time, called with plain boto3, every answer checked."""

import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flatshare.bench import load
from flatshare.bench.numbers import median, percentile
from flatshare.bench.reference import Array, ReferenceEncoder
from flatshare.bench.server import RunningServer, start_server
from flatshare.bench.story import LENGTHS, Steps
from flatshare.bench.tenants import Tenant, base_checkpoint, tenants, text_of, write_tenants
from flatshare.store.catalog import DiskUsage
from flatshare.store.tensors import TensorStore
from flatshare.wire.texts import as_vectors

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Scale:
    """How often the demo calls."""

    cached_calls: int = 20
    rounds_of_five: int = 8
    mixed_calls: int = 300


QUICK = Scale(cached_calls=4, rounds_of_five=2, mixed_calls=60)


class WrongAnswer(Exception):
    """A model answered with another vector than its weights give."""


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Seconds for texts of one length."""

    tokens: int
    cold: float
    cached: float
    five_at_once: float


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo found out."""

    models: int
    checked_answers: int
    largest_difference: float
    rows: tuple[LengthRow, ...]
    cold_p50_ms: float
    cold_p99_ms: float
    cold_calls: int
    resident_models: int
    memory_limit_bytes: int
    anonymous_mb_per_model: float
    server_pss_mb: float
    usage: DiskUsage
    pod_mb: float
    """Resident memory of a process that serves one model and nothing else, measured."""


@dataclass(frozen=True, slots=True)
class Demo:
    """The report and the server that it was made with."""

    report: Report
    server: RunningServer
    target: str
    folder: Path


def run(folder: Path, tenant_count: int, scale: Scale, begin: Steps) -> Demo:
    """Raises WrongAnswer if any model answers wrongly. The server is left running: its owner closes it."""
    catalogue, base, prefix, data = tenants(tenant_count), base_checkpoint(), folder / "models", folder / "data"
    step = begin("writing checkpoints", len(catalogue))
    for _ in write_tenants(base, prefix, catalogue):
        step()
    server = start_server(data, memory_for_half(len(catalogue)), log_file=folder / "server.log")
    try:
        server.deploy(prefix)
        checker = Checker(prefix, catalogue, begin)
        _import(server, catalogue, checker, begin)
        rows, cold = _lengths(server, catalogue, checker, scale, begin)
        cold += _traffic(server, catalogue, checker, scale, begin)
        report = _report(server, data, checker, rows, cold)
    except BaseException:
        server.close()
        raise
    return Demo(report, server, catalogue[0].target, folder)


def memory_for_half(models: int) -> str:
    """A budget that holds the shared tensors, the engine, and about half of the models' own layers (21 MB each)."""
    return f"{170 + 11 * models}MB"


def figures(report: Report) -> dict[str, float]:
    """The report as plain numbers, each with its unit in its name."""
    fields = {name: value for name, value in asdict(report).items() if name not in {"rows", "usage"}}
    for row in report.rows:
        fields |= {f"cold_{row.tokens}_s": row.cold, f"cached_{row.tokens}_s": row.cached, f"five_at_once_{row.tokens}_s": row.five_at_once}
    return {**fields, "distinct_share": report.usage.distinct_share}


class Checker:
    """Knows what each target model must answer, from its checkpoint alone, by plain numpy."""

    def __init__(self, prefix: Path, catalogue: list[Tenant], begin: Steps) -> None:
        step = begin("computing expected answers", len(catalogue))
        self._expected: dict[tuple[str, int], Array] = {}
        self.checked = 0
        self.largest_difference = 0.0
        for index, tenant in enumerate(catalogue):
            reference = ReferenceEncoder(prefix / tenant.target)
            for tokens in LENGTHS if index == 0 else LENGTHS[:2]:
                self._expected[tenant.target, tokens] = reference.embed(text_of(tokens, tenant.seed))
            step()

    def call(self, server: RunningServer, tenant: Tenant, tokens: int) -> tuple[float, bool]:
        """Call through boto3 and compare. Seconds, and whether the model had to be loaded."""
        text = text_of(tokens, tenant.seed)
        started = time.perf_counter()
        answer, headers = server.invoke(tenant.target, text)
        took = time.perf_counter() - started
        expected = self._expected.get((tenant.target, tokens))
        if expected is not None:
            self._compare(tenant, as_vectors(answer)[0], expected)
        return took, "x-flatshare-cold-start-ms" in headers

    def _compare(self, tenant: Tenant, vector: Array, expected: Array) -> None:
        difference = float(np.abs(vector - expected).max())
        self.largest_difference = max(self.largest_difference, difference)
        self.checked += 1
        if difference > TOLERANCE:
            raise WrongAnswer(f"{tenant.target} answered {difference:.1e} away from what its weights give")


def _import(server: RunningServer, catalogue: list[Tenant], checker: Checker, begin: Steps) -> None:
    step = begin("first call of each: import", len(catalogue))
    for tenant in catalogue:
        checker.call(server, tenant, 30)
        step()


def _lengths(
    server: RunningServer, catalogue: list[Tenant], checker: Checker, scale: Scale, begin: Steps
) -> tuple[tuple[LengthRow, ...], list[float]]:
    """Round and round through all models, so that each was evicted before its turn; then one model again and again."""
    rows, cold_30 = [], []
    for tokens in LENGTHS:
        step = begin(f"{tokens} tokens: cold, cached, 5 at once", len(catalogue) + scale.cached_calls + scale.rounds_of_five)
        cold = []
        for tenant in catalogue:
            took, is_cold = checker.call(server, tenant, tokens)
            cold += [took] if is_cold else []
            step()
        cached = []
        for _ in range(scale.cached_calls):
            cached.append(checker.call(server, catalogue[0], tokens)[0])
            step()
        five = []
        for index in range(scale.rounds_of_five):
            five += load.at_once(server, catalogue[0].target, [text_of(tokens, 5 * index + i) for i in range(5)])
            step()
        rows.append(LengthRow(tokens, median(cold), median(cached[1:]), median(five)))
        cold_30 += cold if tokens == LENGTHS[0] else []
    return tuple(rows), cold_30


def _traffic(server: RunningServer, catalogue: list[Tenant], checker: Checker, scale: Scale, begin: Steps) -> list[float]:
    """Calls as tenants make them, some often and most seldom (Zipf); the seconds of the cold ones."""
    dice = random.Random(7)
    popularity = [1 / (rank + 1) for rank in range(len(catalogue))]
    step = begin("mixed traffic", scale.mixed_calls)
    cold = []
    for tenant in dice.choices(catalogue, popularity, k=scale.mixed_calls):
        took, is_cold = checker.call(server, tenant, 30)
        cold += [took] if is_cold else []
        step()
    return cold


def _report(server: RunningServer, data: Path, checker: Checker, rows: tuple[LengthRow, ...], cold: list[float]) -> Report:
    balance, memory = server.status()["balance"], server.memory()
    server.unload_all()
    usage = TensorStore(data / "store").usage()
    return Report(
        models=usage.models,
        checked_answers=checker.checked,
        largest_difference=checker.largest_difference,
        rows=rows,
        cold_p50_ms=1e3 * median(cold),
        cold_p99_ms=1e3 * percentile(cold, 0.99),
        cold_calls=len(cold),
        resident_models=balance["models"],
        memory_limit_bytes=balance["memory_limit"],
        anonymous_mb_per_model=(memory.anonymous_mb - server.memory().anonymous_mb) / balance["models"],
        server_pss_mb=memory.pss_mb,
        usage=usage,
        pod_mb=_one_model_process_mb(data),
    )


def _one_model_process_mb(data: Path) -> float:
    """Start a process that holds one model, ask it once, and read its resident memory."""
    program = (
        "import sys; from pathlib import Path; from flatshare.bench.bare import only_model_mb; print(only_model_mb(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(data / "store")], capture_output=True, text=True, check=True)
    return float(done.stdout)
