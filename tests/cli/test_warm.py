"""`flatshare warm`, `flatshare report cold` and `flatshare import hf`, on one server of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from tests.cli.conftest import Flatshare, Run
from tests.contract.packages import write_model
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import serving

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
def run(flatshare: Flatshare, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Flatshare:
    def run(*arguments: str) -> Run:
        monkeypatch.setenv("FLATSHARE_URL", server.url)
        return flatshare(*arguments)

    return run


def test_a_checkpoint_is_imported_goes_cold_and_is_warmed(run: Flatshare, server: RunningServer, tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "checkpoint", 1))
    imported = run("import", "hf", checkpoint, "acme/embedding", "--json")
    assert imported.status == 0, imported.said
    assert (imported.json["version"], imported.json["layout"]) == (1, "encoder")
    assert server.unload_all() == 1
    with Models("acme", url=server.url) as models:
        models.embed(TEXT)  # cold
        models.embed(TEXT)
    [at_deployment, later] = run("report", "cold", "--json").json
    assert (at_deployment["target"], later["target"]) == ("acme/embedding@1", "acme/embedding@live/query")
    assert at_deployment["why"] == "first call since the server started"
    assert later["waited_ms"] > 0
    assert "2 cold requests waited" in run("report", "cold").said
    assert run("warm").said == "1 called: 0 had to be loaded, 0 failed"
    assert server.unload_all() == 1
    assert run("warm").said == "1 called: 1 had to be loaded, 0 failed"
    assert [one["target"] for one in run("report", "cold", "--json").json][-1] == "acme/embedding@1"


def test_without_models_nothing_is_called(run: Flatshare) -> None:
    assert run("warm").said == "0 called: 0 had to be loaded, 0 failed"
    assert "0 cold requests waited 0.0 s together; most: none" in run("report", "cold").said


def test_a_server_that_is_not_there_is_said(flatshare: Flatshare) -> None:
    for command in (("warm",), ("report", "cold")):
        run = flatshare(*command, "--url", "http://127.0.0.1:9")
        assert (run.status, "flatshare serve" in run.said) == (1, True), run.said


def test_a_folder_that_is_no_checkpoint_is_named(run: Flatshare, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = run("import", "hf", "empty", "acme/x")
    assert (said.status, "has no config.json that can be read" in said.said) == (1, True), said.said


def test_a_triton_repository_comes_over_and_what_cannot_is_named(run: Flatshare, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    write_model(tmp_path / "double").joinpath("double").rename(tmp_path / "repository/double")
    (tmp_path / "repository/broken/1").mkdir(parents=True)
    (tmp_path / "repository/broken/config.pbtxt").write_text("nonsense {")
    done = run("import", "triton", "repository", "acme", "--json")
    assert done.status == 1
    broken, double = done.json
    assert broken["model"] == "acme/broken"
    assert "config.pbtxt" in broken["left"]
    assert (double["model"], double["version"], double["endpoint"]) == ("acme/double", 1, "flatshare-tensors")


def test_traffic_tells_which_models_fit_a_shared_endpoint(flatshare: Flatshare, tmp_path: Path) -> None:
    rows = [f"steady,{1800 * index}" for index in range(200)] + [f"once,{index}" for index in range(5)]
    (tmp_path / "traffic.csv").write_text("\n".join(["model,at_s", *rows]))
    found = {one["model"]: one["fits"] for one in flatshare("report", "fit", "traffic.csv", "--json").json}
    assert found == {"steady": True, "once": False}
    assert "steady" in flatshare("report", "fit", "traffic.csv").said
    (tmp_path / "other.csv").write_text("name,when\nx,1")
    refused = flatshare("report", "fit", "other.csv")
    assert (refused.status, "needs the columns model and at_s" in refused.said) == (1, True)
