"""`flatshare bench deploy`: how long packaging and deploying take, one and hundreds, what a switch breaks, what the API layer adds."""

import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from flatshare.bench.heads import write_heads
from flatshare.bench.numbers import median
from flatshare.bench.server import RunningServer, start_server
from flatshare.bench.story import Results, Steps
from flatshare.bench.tenants import Tenant, base_checkpoint, text_of, write_tenants
from flatshare.client.models import Models
from flatshare.core.errors import FlatshareError
from flatshare.core.release import Promote
from flatshare.package.build import Form, Package
from flatshare.release.batch import deploy_all, read_batch
from flatshare.release.deploying import Deployed, Wish, deploy
from flatshare.release.packaging import PackageRequest, make_package, make_packages
from flatshare.release.site import Site, flatshare_site

TARGETS = {
    "package_s": 3.0,
    "deploy_to_first_answer_s": 2.0,
    "batch_500_heads_s": 60.0,
    "batch_failed": 0.0,
    "switch_failed_requests": 0.0,
    "client_added_ms": 0.2,
}
_CALLERS = 3
_MODEL = "acme/embedding"
_ENDPOINT = "flatshare-embedding"


@dataclass(frozen=True, slots=True)
class Scale:
    """How often each is done; `quick` is for trying the benchmark out, not for figures."""

    packages: int = 5
    switches: int = 100
    pairs: int = 2000
    heads: int = 500


QUICK = Scale(packages=2, switches=20, pairs=40, heads=20)


def run(folder: Path, scale: Scale, begin: Steps) -> dict[str, float]:
    """Every package is of a model of 90 MB that the server has not seen."""
    results = Results()
    packages = _package(folder, scale, results, begin)
    with closing(start_server(folder / "data", "2GiB")) as server:
        site = flatshare_site(server.url, f"file://{folder / 'site'}")
        _deploy(site, packages, results, begin)
        _switch(server, site, scale, results, begin)
        _added(server, scale, results, begin)
        _batch(folder, site, scale, results, begin)
    return results.values


def _package(folder: Path, scale: Scale, results: Results, begin: Steps) -> list[Package]:
    """The trial in a real instance included."""
    tenants = [Tenant(f"tenant-{index}", index) for index in range(scale.packages)]
    step, took_s, packages = begin("packaging", scale.packages), [], []
    for tenant in write_tenants(base_checkpoint(), folder / "checkpoints", tenants):
        out = folder / f"{tenant.target}.package"
        started_s = time.perf_counter()
        sources = {"": folder / "checkpoints" / tenant.target}
        packages.append(make_package(PackageRequest(_MODEL, "encoder", sources, {}, None, "", out=out)))
        took_s.append(time.perf_counter() - started_s)
        step()
    results.put("package_s", median(took_s), 3)
    return packages


def _deploy(site: Site, packages: list[Package], results: Results, begin: Steps) -> None:
    """The first makes the endpoint and is not counted."""
    step, took_s = begin("deploying", len(packages)), []
    for package in packages:
        started_s = time.perf_counter()
        done: Deployed = deploy(site, package, Wish())
        took_s.append(time.perf_counter() - started_s)
        assert done.is_new_version, "the packages differ. This is a bug."
        step()
    results.put("first_deploy_s", took_s[0], 3)
    results.put("deploy_to_first_answer_s", median(took_s[1:]), 3)


def _switch(server: RunningServer, site: Site, scale: Scale, results: Results, begin: Steps) -> None:
    step, is_over, counts, lock = begin("switching under load", scale.switches), threading.Event(), [0, 0], threading.Lock()

    def call() -> None:
        with Models("acme", url=server.url) as models:
            while not is_over.is_set():
                try:
                    models.embed("hello")
                    outcome = 0
                except FlatshareError:
                    outcome = 1
                with lock:
                    counts[outcome] += 1

    threads = [threading.Thread(target=call) for _ in range(_CALLERS)]
    for thread in threads:
        thread.start()
    for index in range(scale.switches):
        site.book.change(_MODEL, Promote(1 + index % 2))
        step()
    is_over.set()
    for thread in threads:
        thread.join()
    results.put("switch_failed_requests", counts[1], 3)
    results.put("switch_answered_requests", counts[0], 3)


def _added(server: RunningServer, scale: Scale, results: Results, begin: Steps) -> None:
    """In turns, so that both meet the same machine. The CPU of the calling thread tells the same where other work blurs the clock."""
    step, text = begin("API layer and raw boto3", scale.pairs), text_of(30, 1)
    body = orjson.dumps({"inputs": [text]})
    call = {"EndpointName": _ENDPOINT, "TargetModel": f"{_MODEL}@live/query", "ContentType": "application/json", "Body": body}
    raw, ours = _Lap(), _Lap()
    with Models("acme", url=server.url) as models:
        models.embed(text)
        for _ in range(scale.pairs):
            with raw:
                server.runtime.invoke_endpoint(**call)["Body"].read()
            with ours:
                models.embed([text])
            step()
    results.put("raw_boto3_ms", raw.wall_ms, 3)
    results.put("client_added_ms", ours.wall_ms - raw.wall_ms, 3)
    results.put("client_added_cpu_ms", ours.cpu_ms - raw.cpu_ms, 3)


def _batch(folder: Path, site: Site, scale: Scale, results: Results, begin: Steps) -> None:
    """Head-only packages by a batch file, as `flatshare deploy --batch` does; the endpoint is made on the way."""
    base, out = base_checkpoint(), folder / "packs"
    sources = list(write_heads(base, folder / "heads", scale.heads))
    like = PackageRequest("", "classifier", {}, {}, None, "", Form.PACKS, trunk=base)
    requests = [replace(like, model=f"heads/h{i}", sources={"": path}, out=out / f"{i}.package") for i, path in enumerate(sources)]
    step, started_s = begin("packaging classifiers", scale.heads), time.perf_counter()
    for made in make_packages(requests):
        if isinstance(made, FlatshareError):
            raise made
        step()
    results.put("package_500_heads_s", time.perf_counter() - started_s)
    results.put("head_package_kb", sum(f.stat().st_size for f in (out / "0.package").rglob("*") if f.is_file()) / 1e3)
    (out / "packages.csv").write_text("package\n" + "".join(f"{i}.package\n" for i in range(scale.heads)))
    step, failed, started_s = begin("deploying classifiers", scale.heads), 0, time.perf_counter()
    for done in deploy_all(site, read_batch(out / "packages.csv"), Wish()):
        failed += bool(done.error)
        step()
    results.put("batch_500_heads_s", time.perf_counter() - started_s)
    results.put("batch_failed", failed)


class _Lap:
    """Times of one kind of call."""

    def __init__(self) -> None:
        self._wall_s: list[float] = []
        self._cpu_s: list[float] = []

    def __enter__(self) -> None:
        self._began_s = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._wall_s.append(time.perf_counter() - self._began_s[0])
        self._cpu_s.append(time.thread_time() - self._began_s[1])

    @property
    def wall_ms(self) -> float:
        return 1e3 * median(self._wall_s)

    @property
    def cpu_ms(self) -> float:
        return 1e3 * median(self._cpu_s)
