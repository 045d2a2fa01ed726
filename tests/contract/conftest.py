"""The server that the Open Inference suite runs on: ours, or any other that the environment names.

FLATSHARE_V2_HTTP=host:port FLATSHARE_V2_GRPC=host:port FLATSHARE_V2_MODEL=name python -m pytest tests/contract/test_v2.py
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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
