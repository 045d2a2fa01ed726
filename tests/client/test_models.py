"""The API layer against a real server: callers name a tenant and a task, nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flatshare.bench.server import RunningServer
from flatshare.client import AsyncModels, Models
from flatshare.core.errors import BadInput
from tests.e2e.checkpoints import TEXT, expected, write_checkpoint
from tests.e2e.servers import deploy, serving

pytestmark = pytest.mark.slow
WORDS = TEXT.split()
TEXTS = [f"{WORDS[i % len(WORDS)]} {WORDS[(i // 3) % len(WORDS)]}" for i in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, part in enumerate(("query", "document")):
        write_checkpoint(folder / "acme/embedding@live" / part, 3000 + seed)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        deploy(running, "flatshare-embedding", folder)
        yield running


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_role_picks_its_encoder(server: RunningServer, folder: Path, role: str) -> None:
    with Models("acme", url=server.url) as models:
        found = models.embed(TEXT, role=role)
    np.testing.assert_allclose(found.vectors[0], expected(folder / "acme/embedding@live" / role), atol=1e-5)
    assert len(found.digest) == 64
    assert found.tokens == (6,)


def test_a_long_list_goes_in_batches_and_comes_back_in_order(server: RunningServer, folder: Path) -> None:
    with Models("acme", url=server.url, batch_size=40) as models:
        found = models.embed(TEXTS)
    assert found.vectors.shape == (150, 32)
    for index in (0, 39, 40, 111, 149):
        np.testing.assert_allclose(found.vectors[index], expected(folder / "acme/embedding@live/query", TEXTS[index]), atol=1e-5)


def test_tensors_go_and_come_as_arrays(server: RunningServer, folder: Path) -> None:
    with Models("acme", url=server.url) as models:
        found = models.infer("embedding", {"text": [TEXT]}, kind="embedding", part="query", wanted=["embedding"])
    np.testing.assert_allclose(found["embedding"][0], expected(folder / "acme/embedding@live/query"), atol=1e-5)


def test_a_model_of_another_kind_says_so(server: RunningServer) -> None:
    with Models("acme", url=server.url, label="nobody") as models, pytest.raises(BadInput, match="Nothing lies at"):
        models.embed(TEXT)


async def test_on_an_event_loop_calls_are_awaited(server: RunningServer, folder: Path) -> None:
    async with AsyncModels("acme", url=server.url) as models:
        found = await models.embed([TEXT], role="document")
    np.testing.assert_allclose(found.vectors[0], expected(folder / "acme/embedding@live/document"), atol=1e-5)


def test_an_environment_variable_says_where_the_server_is(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATSHARE_URL", server.url)
    with Models("acme") as models:
        assert models.embed(TEXT).vectors.shape == (1, 32)
