"""The servers that the contracts are tested on; the end of the run says which there were.

The container contract runs on our instance and on real Triton. The Open Inference suite runs on ours with a checkpoint and with a
Triton package, and on real Triton with the same package; or on any other server that the environment names:

FLATSHARE_V2_HTTP=host:port FLATSHARE_V2_GRPC=host:port FLATSHARE_V2_MODEL=name python -m pytest tests/contract/test_v2.py
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tritonclient.http import InferenceServerClient

from tests.contract import packages
from tests.contract.packages import COUNTER, COUNTER_CONFIG, MIXED, MIXED_CONFIG
from tests.contract.servers import ContainerServer, flatshare_instance, real_triton
from tests.contract.triton_server import running_triton, triton_or_skip
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import deploy, serving


@dataclass(frozen=True, slots=True)
class V2Server:
    """Where a server listens, and a model that it serves."""

    http: str
    grpc: str
    model: str
    counter: str = ""
    """A decoupled model (tests/contract/packages.py), if there is one."""
    pipeline: str = ""
    """An ensemble with such a step."""


@contextmanager
def _flatshare_checkpoint(folder: Path) -> Iterator[V2Server]:
    """A model that flatshare runs itself."""
    write_checkpoint(folder / "models/acme/query", 1)
    with _flatshare_endpoint(folder) as server:
        yield server


@contextmanager
def _flatshare_package(folder: Path) -> Iterator[V2Server]:
    """A Triton package, as the same files are on Triton."""
    packages.write_model(folder / "models/acme/query", MIXED, MIXED_CONFIG)
    with _flatshare_endpoint(folder) as server:
        yield server


@contextmanager
def _flatshare_endpoint(folder: Path) -> Iterator[V2Server]:
    packages.write_model(folder / "models/acme/counter", COUNTER, COUNTER_CONFIG)
    packages.write_pipeline(folder / "models/acme/pipeline")
    with serving(folder / "data") as server:
        deploy(server, "embeddings", folder / "models")
        assert server.grpc_address is not None
        names = [f"embeddings/acme/{name}" for name in ("query", "counter", "pipeline")]
        yield V2Server(server.url.removeprefix("http://"), server.grpc_address, *names)


@contextmanager
def _triton(folder: Path) -> Iterator[V2Server]:
    triton_or_skip()
    with running_triton(folder) as server:
        packages.write_model(server.repository, MIXED, MIXED_CONFIG, name="query")
        packages.write_model(server.repository, COUNTER, COUNTER_CONFIG, name="counter")
        packages.write_pipeline(server.repository)
        address = V2Server(f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}", "query", "counter", "pipeline")
        with InferenceServerClient(address.http) as client:
            for name in (address.model, address.counter, address.pipeline):
                client.load_model(name)
        yield address


@contextmanager
def _named_by_the_environment(_: Path) -> Iterator[V2Server]:
    yield V2Server(os.environ["FLATSHARE_V2_HTTP"], os.environ["FLATSHARE_V2_GRPC"], os.environ["FLATSHARE_V2_MODEL"])


V2_SERVERS = (
    {"named": _named_by_the_environment}
    if "FLATSHARE_V2_HTTP" in os.environ
    else {"flatshare": _flatshare_checkpoint, "flatshare-package": _flatshare_package, "triton": _triton}
)


@pytest.fixture(scope="session", params=list(V2_SERVERS))
def v2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2Server]:
    with V2_SERVERS[request.param](tmp_path_factory.mktemp("v2")) as server:
        request.config.stash.setdefault(RAN, []).append(("Open Inference", str(request.param)))
        yield server


SERVERS = {"flatshare": flatshare_instance, "triton": real_triton}
RAN = pytest.StashKey[list[tuple[str, str]]]()
"""Suites, and the servers that they ran on."""

Running = Callable[[str], ContainerServer]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server by its name, started when it is first asked for."""
    started: dict[str, ContainerServer] = {}
    with ExitStack() as stack:

        def start(name: str) -> ContainerServer:
            if name == "triton":
                triton_or_skip()
            if name not in started:
                started[name] = stack.enter_context(SERVERS[name](tmp_path_factory.mktemp(name)))
                request.config.stash.setdefault(RAN, []).append(("container contract", name))
            return started[name]

        yield start


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, running: Running) -> ContainerServer:
    return running(str(request.param))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say on which servers the contract was tested: a suite that skipped one of them is green as well."""
    ran = config.stash.get(RAN, [])
    for suite in dict.fromkeys(suite for suite, _ in ran):
        terminalreporter.write_line(f"{suite} ran on: {', '.join(dict.fromkeys(name for found, name in ran if found == suite))}")
