"""Real servers that are harmed, and callers who hold them to their word."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flatshare.bench.server import PlainCaller, _first_json
from tests.chaos.witness import HarmedServer, Victim, instance_pids
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import clean_environment, stop

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
) -> Iterator[HarmedServer]:
    """A server over `data` whose models obey faulty_engine.py. `before` is put before its command.

    When the test is done with it, every endpoint is looked at: answers, weights, books (witness.py).
    """
    data.mkdir(parents=True, exist_ok=True)
    (data / "settings.toml").write_text(settings)
    arguments = ["serve", "--data", str(data), "--port", "0", "--memory", memory, "--workers", "2", "--json", *options]
    command = [*before, sys.executable, "-m", module, *arguments, "--settings", str(data / "settings.toml")]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (data / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=clean_environment(paths | dict(environment or {})))
    with process:
        try:
            server = HarmedServer(process, _first_json(process)["url"], data)
            yield server
            assert server.victims, "deploy with Victim (witness.py), which looks after all of it"
            for victim in server.victims:
                victim.require_unharmed()
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


def kill_an_instance(endpoint: Victim) -> None:
    for pid in instance_pids(endpoint)[:1]:
        os.kill(pid, signal.SIGKILL)


def unload(endpoint: Victim, name: str) -> int:
    """Out of the memory of the first instance, by the container contract, at its own door: the status. ConnectionError if it dies."""
    instance = endpoint.instances()[0]
    [key] = [model["key"] for model in instance["models"] if model["uri"].endswith(f"/{name}")]
    with PlainCaller.to_socket(instance["socket"]) as caller:
        return caller.request("DELETE", f"/models/{key}", b"")[0]


def all_answer(endpoint: Victim) -> None:
    """Every tenant's model, and rightly: from now on it is held to these weights."""
    for number in range(MODELS):
        endpoint.require_right(target(number))


def in_parallel(jobs: Sequence[Callable[[], object]], threads: int = 16) -> list[object]:
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@pytest.fixture
def victim(tmp_path: Path, models: Path) -> Iterator[Victim]:
    """An endpoint of one instance. A fresh one for each test, since whoever has died often is started again with growing pauses."""
    settings = "[queue]\nmax_run_s = 3\n[memory]\nrecycle_share = 0.2\n"
    with harmed(tmp_path, settings=settings) as server:
        yield Victim(server, "victim", models)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How soon an instance that was killed was back: a figure, not a bound."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    measured = [value for report in reports for name, value in report.user_properties if name == "recovery"]
    if measured:
        terminalreporter.section("after SIGKILL of an instance")
        for what, seconds in measured:
            terminalreporter.line(f"{what:<32} {seconds:.2f} s")
