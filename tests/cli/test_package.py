"""`flatshare package` and `flatshare code`: a real instance tries what is packaged."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Flatshare
from tests.e2e.checkpoints import random_tensors, write_checkpoint, write_safetensors

pytestmark = pytest.mark.slow


def test_two_encoders_make_one_package_that_answered(flatshare: Flatshare, tmp_path: Path) -> None:
    sources = [f"{role}={write_checkpoint(tmp_path / role, seed)}" for seed, role in enumerate(("query", "document"))]
    runs = [
        flatshare("package", "acme/embedding", *sources, "--layout", "two-encoders", "--form", form, "--out", form, "--json")
        for form in ("folder", "tar.gz")
    ]
    for run in runs:
        assert run.status == 0, run.said
        assert set(run.json["answered_as"]) == {"query", "document"}
    assert runs[0].json["digest"] == runs[1].json["digest"]
    assert runs[0].json["answered_as"] == runs[1].json["answered_as"]
    assert (tmp_path / "tar.gz/document.tar.gz").is_file()


def test_weights_that_do_not_fit_the_config_are_refused_in_the_importers_words(flatshare: Flatshare, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "broken", 1)
    write_safetensors(checkpoint / "model.safetensors", random_tensors(1, rows=7))
    run = flatshare("package", "acme/embedding", str(checkpoint), "--layout", "encoder")
    assert run.status == 1
    assert "does not answer its sample: tensor 'embeddings.word_embeddings.weight' has shape [7, 32]" in run.said
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_weights_that_give_no_numbers_are_refused(flatshare: Flatshare, tmp_path: Path) -> None:
    checkpoint, tensors = write_checkpoint(tmp_path / "nan", 1), random_tensors(1)
    tensors["embeddings.LayerNorm.weight"] = np.full(32, np.nan, np.float32)
    write_safetensors(checkpoint / "model.safetensors", tensors)
    run = flatshare("package", "acme/embedding", str(checkpoint), "--layout", "encoder")
    assert run.status == 1
    assert "weights hold NaN or infinity" in run.said


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("acme/x", "nowhere", "--layout", "encoder"), 1, "does not exist"),
        (("acme", ".", "--layout", "encoder"), 1, "model name '' must be"),
        (("acme/x", ".", "--layout", "encodre"), 1, "there is no layout 'encodre'"),
        (("acme/x", ".", "--layout", "encoder", "--code", "tagger"), 1, "takes no inference code"),
        (("acme/x", ".", "--layout", "encoder", "--set", "a=1"), 1, "has no variable a"),
        (("acme/x", ".", "--layout", "encoder", "--set", "a"), 2, "write it as NAME=VALUE"),
        (("acme/x",), 2, "--layout"),
        (("--layout", "encoder"), 2, "name a MODEL as TENANT/NAME, or give --batch"),
    ],
)
def test_what_is_wrong_is_said(flatshare: Flatshare, arguments: tuple[str, ...], status: int, sentence: str) -> None:
    run = flatshare("package", *arguments)
    assert (run.status, sentence in run.said) == (status, True), run.said


def test_a_batch_of_packages_makes_the_list_that_deploy_takes(flatshare: Flatshare, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", 1)
    (tmp_path / "models.csv").write_text("model,source\nacme/one,base\nacme/two,nowhere\n")
    run = flatshare("package", "--batch", "models.csv", "--layout", "encoder", "--form", "packs", "--trunk", str(base), "--out", "made")
    assert run.status == 1
    assert "acme/two: layout encoder, file 0: the source" in run.said
    assert "1 of 2 packaged: flatshare deploy --batch made/packages.csv" in run.said
    assert (tmp_path / "made/packages.csv").read_text() == "package\nacme-one.package\n"


def test_a_disk_without_room_is_said_and_no_package_is_left(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "source", 1, rows=4096)
    command = [sys.executable, "-m", "flatshare", "package", "acme/embedding", str(checkpoint), "--layout", "encoder"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=limit)  # one thread
    assert done.returncode == 1
    assert "there is no room for the package" in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_layouts_are_listed_with_what_they_take(flatshare: Flatshare) -> None:
    assert "two-encoders (embedding): query=PATH document=PATH" in flatshare("package", "--layouts").said


def test_code_is_pushed_listed_and_shown(flatshare: Flatshare, tmp_path: Path) -> None:
    (tmp_path / "tagger").mkdir()
    (tmp_path / "tagger/model.py").write_text("pass")
    assert flatshare("code", "push", "tagger", "tagger", "--version", "1.2", "--json").json[0]["version"] == "1.2"
    assert "tagger@1.2" in flatshare("code", "list").said
    assert "model.py" in flatshare("code", "show", "tagger").said
    run = flatshare("code", "show", "tagger", "--version", "2")
    assert (run.status, "it has 1.2" in run.said) == (1, True)
