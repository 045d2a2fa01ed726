"""One real server for all tests that do not harm it: tiny encoders with random weights, and the real MiniLM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flatshare.bench.server import RunningServer
from flatshare.bench.tenants import base_checkpoint
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import Endpoint, deploy, serving

TENANTS = tuple(f"tenant-{index}/query" for index in range(6))
MINILM = "real/minilm"


@pytest.fixture(autouse=True)
def _no_aws_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder under which every tenant's checkpoint lies."""
    folder = tmp_path_factory.mktemp("models")
    for seed, target in enumerate(TENANTS):
        write_checkpoint(folder / target, seed)
    (folder / MINILM).parent.mkdir()
    (folder / MINILM).mkdir()
    for path in base_checkpoint().rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            place = folder / MINILM / path.relative_to(base_checkpoint())
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def endpoint(server: RunningServer, checkpoints: Path) -> Endpoint:
    """The tenants' endpoint on the shared server."""
    return deploy(server, "embeddings", checkpoints)
