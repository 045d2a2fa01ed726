"""`flatshare models` and `flatshare top`, beside a running server."""

from pathlib import Path

import pytest

from flatshare.bench.server import RunningServer
from tests.cli.conftest import Flatshare
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import Endpoint, deploy

pytestmark = pytest.mark.slow
NAMES = ("one", "two", "again-one", "odd[/name]")


@pytest.fixture(scope="module")
def stocked(cli_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    """Four artifacts, two of them with the same content."""
    folder = tmp_path_factory.mktemp("stock")
    for name, seed in zip(NAMES, (1, 2, 1, 3), strict=True):
        write_checkpoint(folder / name, seed)
    endpoint = deploy(cli_server, "stock", folder)
    for name in NAMES:
        endpoint.require_right(name)
    return endpoint


def _uri(endpoint: Endpoint, name: str) -> str:
    return f"file://{endpoint.folder}/{name}"


def test_list_shows_each_model_with_all_its_artifacts(flatshare: Flatshare, stocked: Endpoint, cli_data: Path) -> None:
    models = flatshare("models", "list", "--data", str(cli_data), "--json").json
    [twice] = [model for model in models if _uri(stocked, "one") in model["artifacts"]]
    assert sorted(twice["artifacts"]) == sorted([_uri(stocked, "one"), _uri(stocked, "again-one")])
    assert (twice["family"], twice["width"], twice["max_tokens"]) == ("bert", 32, 64)
    run = flatshare("models", "list", "--data", str(cli_data))
    assert run.status == 0
    assert twice["digest"][:12] in run.said


def test_du_shows_what_sharing_saves(flatshare: Flatshare, stocked: Endpoint, cli_data: Path) -> None:
    usage = flatshare("models", "du", "--data", str(cli_data), "--json").json
    assert usage["models"] >= 3
    assert 0 < usage["distinct_bytes"] <= usage["sum_bytes"]
    assert usage["saved_bytes"] == usage["sum_bytes"] - usage["distinct_bytes"]
    said = flatshare("models", "du", "--data", str(cli_data)).said
    assert f"{usage['distinct_bytes']:,}" in said


def test_forgetting_and_collecting_free_space_and_the_model_is_imported_anew_after_an_unload(
    flatshare: Flatshare, stocked: Endpoint, cli_data: Path
) -> None:
    data = ("--data", str(cli_data))
    before = flatshare("models", "list", *data, "--json").json
    assert flatshare("models", "forget", _uri(stocked, "two"), *data).status == 0
    collected = flatshare("models", "collect", *data, "--json").json
    assert collected["models"] >= 1
    assert collected["freed_bytes"] > 0
    assert len(flatshare("models", "list", *data, "--json").json) < len(before)
    stocked.require_right("two")  # it is mapped: its pages stay as long as it is in memory
    assert "models and" in flatshare("models", "collect", *data).said
    forgotten = flatshare("models", "forget", _uri(stocked, "two"), *data)
    assert forgotten.status == 1
    assert "is not known here" in forgotten.said


def test_verify_finds_and_repairs_a_damaged_pack(flatshare: Flatshare, stocked: Endpoint, cli_data: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copy = copytree(cli_data, tmp_path / "copy")  # the server goes on with the original
    data = ("--data", str(copy))
    assert flatshare("models", "verify", *data).status == 0
    pack = next((copy / "store/packs").glob("*.pack"))
    content = bytearray(pack.read_bytes())
    content[100] ^= 1
    pack.write_bytes(content)
    found = flatshare("models", "verify", *data, "--json")
    assert found.status == 1
    assert found.json["damaged"] == [pack.stem]
    assert "1 damaged" in flatshare("models", "verify", *data).said
    repaired = flatshare("models", "verify", *data, "--repair")
    assert repaired.status == 0
    assert "models forgotten" in repaired.said
    assert flatshare("models", "verify", *data).status == 0


@pytest.mark.parametrize("command", ["list", "du", "collect", "verify"])
def test_a_folder_without_a_store_is_told_and_left_alone(flatshare: Flatshare, tmp_path: Path, command: str) -> None:
    run = flatshare("models", command, "--data", str(tmp_path))
    assert run.status == 1
    assert "holds no tensor store" in run.said
    assert list(tmp_path.iterdir()) == []


def test_top_shows_instances_models_and_reasons(at_server: Flatshare, stocked: Endpoint) -> None:
    said = at_server("top", "--once").said
    assert "stock" in said
    assert "odd[/name]" in said
    assert "new of" in said
    [instance] = [i for i in at_server("top", "--json").json["instances"] if i["endpoint"] == "stock"]
    assert instance["balance"]["models"] == len(NAMES)
    assert instance["in_flight"] == 0
    assert instance["signs"]["available"] > 0
    assert "page" in said
