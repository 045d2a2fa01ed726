"""Real servers that are harmed, and callers who hold them to their word."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from flatshare.bench.machine import family
from flatshare.bench.server import PlainCaller, RunningServer, _first_json
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import Endpoint, clean_environment, deploy, stop

ROOT = Path(__file__).parents[2]
MODELS = 8


@contextmanager
def harmed(
    data: Path,
    *,
    memory: str = "1GiB",
    settings: str = "",
    module: str = "tests.chaos.faulty_server",
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[RunningServer]:
    """A server over `data` whose models obey faulty_engine.py. `before` is put before its command."""
    data.mkdir(parents=True, exist_ok=True)
    (data / "settings.toml").write_text(settings)
    arguments = ["serve", "--data", str(data), "--port", "0", "--memory", memory, "--workers", "2", "--json", *options]
    command = [*before, sys.executable, "-m", module, *arguments, "--settings", str(data / "settings.toml")]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (data / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=clean_environment(paths | dict(environment or {})))
    with process:
        try:
            yield RunningServer(process, _first_json(process)["url"])
        finally:
            stop(process)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tenants with a tiny encoder each, none like another."""
    folder = tmp_path_factory.mktemp("chaos-models")
    for seed in range(MODELS):
        write_checkpoint(folder / f"tenant-{seed}/m", 900 + seed)
    return folder


def target(number: int) -> str:
    return f"tenant-{number % MODELS}/m"


def instance_pids(endpoint: Endpoint) -> list[int]:
    """Processes of the instances, as the operating system knows them."""
    found = []
    for pid in family(endpoint.server.process.pid)[1:]:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b" ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"instance" in words and b"--socket" in words:
            found.append(pid)
    return found


def kill_an_instance(endpoint: Endpoint) -> None:
    for pid in instance_pids(endpoint)[:1]:
        os.kill(pid, signal.SIGKILL)


@dataclass
class Caller:
    """Plain HTTP, so that nothing is retried behind our back. Everything that was answered is kept."""

    endpoint: Endpoint
    statuses: list[int] = field(default_factory=list)

    def call(self, name: str, text: str = TEXT) -> tuple[int, bytes]:
        with PlainCaller.to_port(self.endpoint.server.port) as caller:
            path = f"/endpoints/{self.endpoint.name}/invocations"
            status, body = caller.request("POST", path, orjson.dumps({"inputs": text}), f"X-Amzn-SageMaker-Target-Model: {name}\r\n")
        self.statuses.append(status)
        return status, body

    def until_answered(self, name: str, text: str = TEXT, *, within_s: float = 60.0) -> bytes:
        """As a client with retries: the platform may say 503 or 429 for a while, and nothing else."""
        deadline_s = time.monotonic() + within_s
        while True:
            status, body = self.call(name, text)
            if status == 200:
                return body
            assert status in {429, 503, 530}, body  # 530: the store that the model lies in does not answer
            assert time.monotonic() < deadline_s, f"still {status} after {within_s} s: {body!r}"


def digests(endpoint: Endpoint) -> dict[str, str]:
    """Which weights answer for each tenant, each answer compared with numpy's."""
    return {target(n): endpoint.require_right(target(n)).digest for n in range(MODELS)}


def in_parallel(jobs: Sequence[Callable[[], object]], threads: int = 16) -> list[object]:
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def require_balanced(endpoint: Endpoint, tolerance_bytes: int = 64 << 20) -> None:
    """What the books say and what the kernel counts, for each instance: never more than the tolerance that no book knows."""
    for instance in endpoint.instances():
        balance = instance["balance"]
        assert balance["models"] == len(instance["models"])
        assert balance["mapped"] <= sum(model["mapped_bytes"] for model in instance["models"])
        assert balance["measured_anonymous"] <= balance["anonymous"] + tolerance_bytes
        assert balance["anonymous"] + balance["mapped"] <= balance["memory_limit"]


@pytest.fixture
def victim(tmp_path: Path, models: Path) -> Iterator[Endpoint]:
    """An endpoint of one instance. A fresh one for each test, since whoever has died often is started again with growing pauses."""
    settings = "[queue]\nmax_run_s = 3\n[memory]\nrecycle_share = 0.2\n"
    with harmed(tmp_path, settings=settings) as server:
        yield deploy(server, "victim", models)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
