"""`flatshare deploy` and `flatshare invoke` against a real server."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.cli.conftest import Flatshare
from tests.e2e.checkpoints import TEXT, expected, pack, write_checkpoint
from tests.e2e.servers import require_vector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the endpoint that these tests share."""
    return tmp_path_factory.mktemp("deployed")


def _prefix(folder: Path) -> tuple[str, ...]:
    return ("--endpoint", "shop", "--prefix", f"file://{folder}/")


def test_a_directory_and_archives_are_deployed_and_called(at_server: Flatshare, folder: Path, tmp_path: Path) -> None:
    artifacts = [write_checkpoint(tmp_path / "encoder", 1000), pack(tmp_path / "encoder", tmp_path / "packed.tar.gz")]
    run = at_server("deploy", *map(str, artifacts), *_prefix(folder), "--json")
    assert run.status == 0, run.said
    assert (run.json["endpoint"], run.json["prefix"]) == ("shop", f"file://{folder}/")
    assert [model["target"] for model in run.json["models"]] == ["encoder", "packed.tar.gz"]
    assert all(model["first_answer_ms"] > 0 for model in run.json["models"])
    for model in run.json["models"]:
        answer = at_server("invoke", "shop", model["target"], TEXT, "--json").json
        require_vector(np.asarray(answer["embeddings"][0], np.float32), tmp_path / "encoder")


def test_deploying_a_second_time_changes_nothing(at_server: Flatshare, folder: Path, tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "encoder", 1001))
    runs = [at_server("deploy", checkpoint, *_prefix(folder), "--target", "acme/query") for _ in range(2)]
    assert [run.status for run in runs] == [0, 0]
    assert "acme/query: answered in" in runs[1].said
    answers = [at_server("invoke", "shop", "acme/query", TEXT, "--json").json for _ in range(2)]
    assert answers[0] == answers[1]
    assert list((folder / "acme").iterdir()) == [folder / "acme/query"]


def test_a_retrained_model_under_the_old_name_is_what_answers_afterwards(at_server: Flatshare, folder: Path, tmp_path: Path) -> None:
    for seed in (2001, 2002):
        checkpoint = write_checkpoint(tmp_path / str(seed), seed)
        run = at_server("deploy", str(checkpoint), *_prefix(folder), "--target", "acme/retrained")
        assert run.status == 0, run.said
        answer = at_server("invoke", "shop", "acme/retrained", TEXT, "--json").json
        require_vector(np.asarray(answer["embeddings"][0], np.float32), checkpoint)


def test_a_broken_artifact_is_named_and_the_others_are_deployed(at_server: Flatshare, folder: Path, tmp_path: Path) -> None:
    broken, sound = write_checkpoint(tmp_path / "broken", 1002), write_checkpoint(tmp_path / "sound", 1003)
    (broken / "tokenizer.json").unlink()
    run = at_server("deploy", str(broken), str(sound), *_prefix(folder))
    assert run.status == 1
    assert "broken: tokenizer.json is missing" in run.said
    assert "sound: answered in" in run.said
    assert "amazon" not in run.said


def test_the_default_prefix_is_below_the_current_folder(at_server: Flatshare, tmp_path: Path) -> None:
    run = at_server("deploy", str(write_checkpoint(tmp_path / "encoder", 1004)), "--endpoint", "here", "--no-check")
    assert run.status == 0
    assert "encoder: not called" in run.said
    assert (tmp_path / "models/here/encoder/config.json").is_file()


def test_the_folder_that_one_is_in_is_deployed_under_its_name(
    at_server: Flatshare, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(folder.iterdir())
    monkeypatch.chdir(write_checkpoint(tmp_path / "from-inside", 1005))
    assert "from-inside: answered in" in at_server("deploy", ".", *_prefix(folder)).said
    assert set(folder.iterdir()) == before | {folder / "from-inside"}


@pytest.mark.parametrize("target", ["../out", "/abs", "a//b", "a/./b", "."])
def test_a_target_outside_of_the_prefix_is_refused(at_server: Flatshare, folder: Path, tmp_path: Path, target: str) -> None:
    run = at_server("deploy", str(write_checkpoint(tmp_path / "encoder", 1006)), *_prefix(folder), "--target", target)
    assert run.status == 1
    assert f"target '{target}' must be a plain path" in run.said
    assert not (folder.parent / "out").exists()


def test_a_target_does_not_take_the_place_of_a_folder_of_models(at_server: Flatshare, folder: Path, tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "encoder", 1007))
    assert at_server("deploy", checkpoint, *_prefix(folder), "--target", "many/query", "--no-check").status == 0
    run = at_server("deploy", checkpoint, *_prefix(folder), "--target", "many")
    assert run.status == 1
    assert "is a folder of other models" in run.said
    assert (folder / "many/query/config.json").is_file()


def test_an_artifact_that_does_not_exist_is_a_usage_error(at_server: Flatshare) -> None:
    run = at_server("deploy", "nowhere", "--endpoint", "shop")
    assert run.status == 2
    assert "'nowhere' does not exist" in run.said


def test_a_target_for_two_artifacts_is_a_usage_error(at_server: Flatshare, tmp_path: Path) -> None:
    assert at_server("deploy", str(tmp_path), str(tmp_path), "--endpoint", "shop", "--target", "x").status == 2


@pytest.fixture
def encoder(at_server: Flatshare, folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that is deployed as shop/encoder-for-calls."""
    checkpoint = write_checkpoint(tmp_path / "encoder-for-calls", 1008)
    if not (folder / checkpoint.name).exists():
        assert at_server("deploy", str(checkpoint), *_prefix(folder), "--no-check").status == 0
    return checkpoint


def test_invoke_prints_the_vector_and_where_it_came_from(at_server: Flatshare, encoder: Path) -> None:
    at_server("invoke", "shop", encoder.name, TEXT)
    said = at_server("invoke", "shop", encoder.name, TEXT).said
    first = expected(encoder)[0]
    assert f"[{first:+.4f}," in said
    assert "… 32 numbers]" in said
    assert "was in memory; weights " in said


def test_invoke_sends_a_file_or_its_standard_input_as_it_is(at_server: Flatshare, encoder: Path, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_bytes(orjson.dumps({"inputs": [TEXT, "hello"]}))
    from_file = at_server("invoke", "shop", encoder.name, "--body", str(body), "--json").json
    assert len(from_file["embeddings"]) == 2
    call = ("invoke", "shop", encoder.name, "--body", "-", "--content-type", "text/plain", "--json")
    from_input = at_server(*call, stdin=TEXT.encode()).json
    require_vector(np.asarray(from_input["embeddings"][0], np.float32), encoder)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("shop", "nobody", "hello"), 1, "Nothing lies at"),
        (("nobody", "x", "hello"), 1, "Endpoint nobody of account 000000000000 not found."),
        (("shop", "encoder-for-calls", "--body", "-"), 1, "the body is not valid JSON"),
        (("shop", "a[/b]c", "hello"), 1, "a[/b]c"),
        (("shop", "x"), 2, "give either texts or --body"),
        (("shop", "x", "hello", "--body", "-"), 2, "give either texts or --body"),
    ],
)
def test_what_went_wrong_is_said_in_the_servers_own_words(
    at_server: Flatshare, encoder: Path, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    run = at_server("invoke", *arguments)
    assert run.status == status
    assert sentence in run.said
    assert "Traceback" not in run.said
