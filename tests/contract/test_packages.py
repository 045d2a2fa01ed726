"""What `flatshare package` makes answers equally here and on real Triton, from the same files."""

import tarfile
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from flatshare.core.settings import StoreLimits
from flatshare.package.build import Package
from flatshare.package.torchscripting import write_torchscript
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.store.code import CodeShelf
from tests.contract.conftest import Running
from tests.contract.servers import ContainerServer, tensor
from tests.contract.triton_server import triton_or_skip
from tests.e2e.checkpoints import TEXT, expected, write_checkpoint

pytestmark = pytest.mark.slow
TEXTS = [TEXT, "hello", "i want to return the order please"]
TOKENS = """
    import json
    import os

    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            folder = os.path.join(args["model_repository"], args["model_version"])
            with open(os.path.join(folder, "tokenizer.json")) as file:
                self.vocabulary = json.load(file)["model"]["vocab"]
            self.longest = int(json.loads(args["model_config"])["parameters"]["max_tokens"]["string_value"])

        def execute(self, requests):
            return [self.answer(pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)) for request in requests]

        def answer(self, texts):
            rows = [["[CLS]", *text.decode().split()[: self.longest - 2], "[SEP]"] for text in texts]
            width = max(map(len, rows))
            ids = np.zeros((len(rows), width), np.int64)
            for row, words in zip(ids, rows):
                row[: len(words)] = [self.vocabulary.get(word, self.vocabulary["[UNK]"]) for word in words]
            mask = (ids != 0).astype(np.int64)
            return pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the story's embedding model: two checkpoints, traced, and versioned code before them."""
    folder = tmp_path_factory.mktemp("packages")
    for seed, role in enumerate(("query", "document")):
        write_torchscript(write_checkpoint(folder / role, 8100 + seed), folder / f"traced/{role}", StoreLimits())
    (folder / "code").mkdir()
    (folder / "code/model.py").write_text(dedent(TOKENS))
    CodeShelf(f"file://{folder}/store").push("tokens", folder / "code")
    return folder


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    sources = {role: folder / f"traced/{role}" for role in ("query", "document")}
    return make_package(
        PackageRequest("acme/embedding", "embedding-ensemble", sources, {}, "tokens", f"file://{folder}/store", "tar.gz", folder / "made")
    )


def test_it_answers_as_the_checkpoints_do_on_flatshare(running: Running, package: Package, folder: Path) -> None:
    found = _everything(running("flatshare"), package, folder / "ours")
    for role, vectors in found.items():
        wanted = np.array([expected(folder / role, text) for text in TEXTS])
        np.testing.assert_allclose(vectors, wanted, atol=1e-5, err_msg=role)
    assert not np.allclose(found["query"], found["document"], atol=0.05)


def test_it_answers_the_same_on_triton(running: Running, package: Package, folder: Path) -> None:
    triton_or_skip()
    ours, theirs = (_everything(running(name), package, folder / f"{name}-files") for name in ("flatshare", "triton"))
    for role, vectors in ours.items():
        np.testing.assert_allclose(vectors, theirs[role], atol=1e-6, err_msg=role)


def test_the_package_says_which_code_went_in(package: Package) -> None:
    record = package.record
    assert record.code is not None
    assert (record.code.name, record.code.version) == ("tokens", "1")
    assert {part.name for part in record.parts} == {"query", "document"}


def _everything(server: ContainerServer, package: Package, place: Path) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Every part's vectors, from the unpacked archive, as SageMaker's platform hands it to the container."""
    found = {}
    for part in package.record.parts:
        with tarfile.open(package.artifact(part)) as packed:
            packed.extractall(place / part.name, filter="data")
        answer = server.load(f"made{part.name}", place / part.name)
        assert answer.status == 200, answer.body
        vectors = server.infer(f"made{part.name}", [tensor("text", "BYTES", [len(TEXTS), 1], TEXTS)]).output("embedding")
        found[part.name] = np.array(vectors).reshape(len(TEXTS), -1)
        assert server.unload(f"made{part.name}").status == 200
    return found
