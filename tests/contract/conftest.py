"""Every test of this folder runs on both servers; the end of the run says which there were."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.contract.servers import ContainerServer, flatshare_instance, real_triton
from tests.contract.triton_server import triton_or_skip

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
