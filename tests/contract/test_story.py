"""The story's packages give the same numbers here and on real Triton, from the same files."""

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.conftest import Running
from tests.contract.servers import Answer, ContainerServer, tensor
from tests.contract.story import archive, autocomplete_package, embedding_package, ranking_package
from tests.contract.triton_server import triton_or_skip

pytestmark = pytest.mark.slow
TEXTS = [["Where is my parcel?"], ["a refund, please!"], ["Zebra"]]
PROMPTS = [["where is my"], ["thank you"]]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By target model, as the platform lays an archive out: unpacked below a folder of its own."""
    folder = tmp_path_factory.mktemp("story")
    built = {
        "query": embedding_package(folder / "built/query", "query", 1),
        "document": embedding_package(folder / "built/document", "document", 2),
        "autocomplete": autocomplete_package(folder / "built/autocomplete", 3),
        "other": autocomplete_package(folder / "built/other", 4),
        "ranker": ranking_package(folder / "built/ranker", 1),
    }
    for name, path in built.items():
        with tarfile.open(archive(path, folder / f"{name}.tar.gz")) as packed:
            packed.extractall(folder / name, filter="data")
    return folder


@contextmanager
def _loaded(server: ContainerServer, packages: Path, *names: str) -> Iterator[None]:
    for name in names:
        answer = server.load(f"story{name}", packages / name)
        assert answer.status == 200, answer.body
    yield
    for name in names:
        assert server.unload(f"story{name}").status == 200


def _embed(server: ContainerServer, name: str) -> Answer:
    data = [text for row in TEXTS for text in row]
    return server.infer(f"story{name}", [tensor("text", "BYTES", [3, 1], data)])


def _complete(server: ContainerServer, name: str, **more: Any) -> Answer:
    inputs = [tensor("prompt", "BYTES", [2, 1], [text for row in PROMPTS for text in row])]
    if more:
        inputs.append(tensor("max_tokens", "INT32", [2, 1], [more["max_tokens"]] * 2))
    return server.infer(f"story{name}", inputs)


def test_the_same_packages_give_the_same_numbers_on_both_servers(running: Running, packages: Path) -> None:
    """An embedding definition is two target models, each an ensemble; autocomplete models of the same code have their own weights."""
    triton_or_skip()
    ours, theirs = (_everything(running(name), packages) for name in ("flatshare", "triton"))
    assert ours["completions"] == theirs["completions"]
    for key in ("query", "document", "scores"):
        assert np.allclose(ours[key], theirs[key], rtol=0, atol=1e-6), key


def test_the_storys_packages_answer_from_their_own_weights(running: Running, packages: Path) -> None:
    found = _everything(running("flatshare"), packages)
    queries, documents = (np.array(found[name]).reshape(3, 8) for name in ("query", "document"))
    assert all(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5) for rows in (queries, documents))
    assert not np.allclose(queries, documents, atol=0.05)
    assert found["scores"][0] != found["scores"][1]
    assert all(len(text.split()) <= 2 for text in found["short"])
    assert "quixotic" in found["refused"]


def _everything(server: ContainerServer, packages: Path) -> dict[str, Any]:
    with _loaded(server, packages, "query", "document", "autocomplete", "other"):
        completions = [_complete(server, name) for name in ("autocomplete", "other")]
        return {
            "query": _embed(server, "query").output("embedding"),
            "document": _embed(server, "document").output("embedding"),
            "completions": [answer.output("completion") for answer in completions],
            "scores": [answer.output("score") for answer in completions],
            "short": _complete(server, "autocomplete", max_tokens=2).output("completion"),
            "refused": server.infer("storyautocomplete", [tensor("prompt", "BYTES", [1, 1], ["quixotic"])]).error,
        }


def test_an_archive_is_loaded_as_it_is(running: Running, packages: Path) -> None:
    server = running("flatshare")
    assert server.load("a1", packages / "query.tar.gz").status == 200
    answer = server.infer("a1", [tensor("text", "BYTES", [1, 1], ["help"])])
    assert len(answer.output("embedding")) == 8
    server.unload("a1")


def test_a_model_that_calls_others_of_its_package_is_answered(running: Running, packages: Path, tmp_path: Path) -> None:
    """On Triton the entry of this package would be the ensemble; here too, so it is asked as a step of its own."""
    folder = tmp_path / "ranker"
    shutil.copytree(packages / "ranker", folder)
    wrapper = folder / "rank"
    (wrapper / "1").mkdir(parents=True)
    (wrapper / "config.pbtxt").write_text(_RANK)
    server = running("flatshare")
    assert server.load("r1", folder).status == 200
    inputs = [tensor("query", "BYTES", [1], ["my parcel"]), tensor("passages", "BYTES", [2], ["my parcel", "card payment"])]
    scores = server.infer("r1", inputs).output("score")
    server.unload("r1")
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores[1] < 0.99


_RANK = """
platform: "ensemble"
input [ { name: "query" data_type: TYPE_STRING dims: [ 1 ] }, { name: "passages" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling { step [ {
  model_name: "zz_ranker" model_version: -1
  input_map { key: "query" value: "query" }
  input_map { key: "passages" value: "passages" }
  output_map { key: "score" value: "score" }
} ] }
"""
