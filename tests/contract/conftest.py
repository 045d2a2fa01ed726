"""Every test of this folder runs on both servers; the end of the run says which there were."""

from collections.abc import Iterator

import pytest

from tests.contract.servers import ContainerServer, flatshare_instance, real_triton
from tests.contract.triton_server import triton_or_skip

SERVERS = {"flatshare": flatshare_instance, "triton": real_triton}


@pytest.fixture(scope="session", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerServer]:
    name = str(request.param)
    if name == "triton":
        triton_or_skip()
    with SERVERS[name](tmp_path_factory.mktemp(name)) as running:
        yield running
