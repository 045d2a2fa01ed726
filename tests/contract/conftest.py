"""The servers that the contracts are tested on; the end of the run says which there were.

The container contract runs on our instance and on real Triton. The Open Inference suite runs on ours, or on any other that the
environment names:

FLATSHARE_V2_HTTP=host:port FLATSHARE_V2_GRPC=host:port FLATSHARE_V2_MODEL=name python -m pytest tests/contract/test_v2.py
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.contract.servers import ContainerServer, flatshare_instance, real_triton
from tests.contract.triton_server import triton_or_skip
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import deploy, serving


@dataclass(frozen=True, slots=True)
class V2Server:
    """Where a server listens, and a model that it serves."""

    http: str
    grpc: str
    model: str


@pytest.fixture(scope="session")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V2Server]:
    if "FLATSHARE_V2_HTTP" in os.environ:
        yield V2Server(os.environ["FLATSHARE_V2_HTTP"], os.environ["FLATSHARE_V2_GRPC"], os.environ["FLATSHARE_V2_MODEL"])
        return
    folder = tmp_path_factory.mktemp("v2")
    write_checkpoint(folder / "models/acme/query", 1)
    with serving(folder / "data") as server:
        deploy(server, "embeddings", folder / "models")
        assert server.grpc_address is not None
        yield V2Server(server.url.removeprefix("http://"), server.grpc_address, "embeddings/acme/query")


SERVERS = {"flatshare": flatshare_instance, "triton": real_triton}
RAN = pytest.StashKey[list[str]]()

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
                request.config.stash.setdefault(RAN, []).append(name)
            return started[name]

        yield start


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, running: Running) -> ContainerServer:
    return running(str(request.param))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say on which servers the contract was tested: a suite that skipped one of them is green as well."""
    ran = config.stash.get(RAN, [])
    if ran:
        terminalreporter.write_line(f"container contract ran on: {', '.join(ran)}")
