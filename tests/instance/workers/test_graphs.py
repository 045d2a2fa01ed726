"""ONNX and TorchScript models of Triton repositories: their numbers, their mapped weights, their batches."""

import asyncio
import warnings
from collections.abc import Awaitable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import ModelFailed
from flatshare.core.ids import ArtifactUri
from flatshare.core.repository import from_json
from flatshare.core.settings import StoreLimits
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from flatshare.package.importer import import_checkpoint
from flatshare.package.triton.onnx_weights import WEIGHTS
from flatshare.store.tensors import TensorStore
from tests.instance.workers.conftest import Hotel

pytestmark = pytest.mark.slow
WIDTH = 256
CONFIG = """
backend: "BACKEND"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 256 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 256 ] }, { name: "ROWS" data_type: TYPE_INT64 dims: [ 1 ] } ]
dynamic_batching { max_queue_delay_microseconds: 20000000 preferred_batch_size: [ SIZE ] }
"""
"""A run begins when so many rows are there; the delay is for ever, as far as a test goes. Y comes of a matrix, ROWS says how many ran."""


def onnx_repository(folder: Path, seed: int, *, frozen: int = 0, size: int = 1) -> Path:
    """tanh(X · own · frozen), and the rows of X beside each row."""
    weights = {
        name: np.random.default_rng(n).standard_normal((WIDTH, WIDTH), np.float32) / 16 for name, n in (("own", seed), ("frozen", frozen))
    }
    nodes = [
        helper.make_node("MatMul", ["X", "own"], ["a"]),
        helper.make_node("MatMul", ["a", "frozen"], ["b"]),
        helper.make_node("Tanh", ["b"], ["Y"]),
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "one"], ["column"], axis=0),
        helper.make_node("Expand", ["rows", "column"], ["ROWS"]),
    ]
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    constants += [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", WIDTH])],
        [
            helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", WIDTH]),
            helper.make_tensor_value_info("ROWS", TensorProto.INT64, ["n", 1]),
        ],
        constants,
    )
    place = _repository(folder, "onnxruntime", size)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), place / "model.onnx")
    return folder


def torch_repository(folder: Path, *, size: int) -> Path:
    """Twice X; a negative number in it is an error of the whole run."""
    import torch

    class Doubling(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if bool((x < 0).any()):
                raise ValueError("a negative number")
            return x * 2, torch.full((x.shape[0], 1), x.shape[0])

    place = _repository(folder, "pytorch", size)
    text = (folder / folder.name / "config.pbtxt").read_text()
    (folder / folder.name / "config.pbtxt").write_text(text.replace('"X"', '"x"').replace('"Y"', '"Y__0"').replace('"ROWS"', '"ROWS__1"'))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what such packages hold
        torch.jit.script(Doubling()).save(str(place / "model.pt"))
    return folder


def _repository(folder: Path, backend: str, size: int) -> Path:
    place = folder / folder.name / "1"
    place.mkdir(parents=True)
    (place.parent / "config.pbtxt").write_text(CONFIG.replace("BACKEND", backend).replace("SIZE", str(size)))
    return place


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.abs(np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32))


def ask(model: RemoteModel, values: NDArray[np.float32], name: str = "X") -> Awaitable[InferResult]:
    return model.infer(InferCall({name: Tensor.of(name, values)}))


async def test_an_onnx_repository_gives_the_numbers_of_onnxruntime(hotel: Hotel, tmp_path: Path) -> None:
    folder = onnx_repository(tmp_path / "net", 1)
    model = await hotel.load(folder)
    result = await ask(model, rows(3))
    np.testing.assert_allclose(result.output("Y").data, _by_onnxruntime(folder, rows(3)), atol=1e-5)


async def test_the_weights_of_onnx_models_lie_in_the_store_and_equal_ones_once(hotel: Hotel, tmp_path: Path) -> None:
    folders = [onnx_repository(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    shared = [_split(hotel.store, folder) for folder in folders]
    assert shared == [[], ["frozen"]]
    for folder in folders:
        model = await hotel.load(folder)
        np.testing.assert_allclose((await ask(model, rows(1))).output("Y").data, _by_onnxruntime(folder, rows(1)), atol=1e-5)


def _split(store: TensorStore, folder: Path) -> list[str]:
    """Import it; the tensors that it has in common with earlier ones."""
    report = import_checkpoint(store, folder, ArtifactUri(f"file://{folder}"), "1", StoreLimits())
    found = store.stored(report.manifest.digest)
    assert found is not None
    version = Path(found.package_dir) / folder.name / "1"
    assert (version / "model.onnx").stat().st_size < 4000
    assert (version / WEIGHTS).stat().st_size > 2 * 4 * WIDTH * WIDTH
    [unit] = from_json(Path(found.graph_path).read_bytes()).units
    return [name for tensors in unit.shared.values() for name in tensors]


def _by_onnxruntime(folder: Path, values: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(folder / folder.name / "1/model.onnx"), providers=["CPUExecutionProvider"])
    [found] = session.run(["Y"], {"X": values})
    return np.asarray(found)


@pytest.mark.parametrize("write", [onnx_repository, torch_repository])
async def test_rows_of_several_requests_are_one_run_of_the_graph(hotel: Hotel, tmp_path: Path, write: object) -> None:
    if write is onnx_repository:
        model, x, y, seen = await hotel.load(onnx_repository(tmp_path / "net", 1, size=4)), "X", "Y", "ROWS"
    else:
        model, x, y, seen = await hotel.load(torch_repository(tmp_path / "net", size=4)), "x", "Y__0", "ROWS__1"
    values = [rows(1, 1), rows(2, 2), rows(1, 3)]
    together = await asyncio.gather(*(ask(model, part, x) for part in values))
    assert [result.output(seen).data.tolist() for result in together] == [[[4]], [[4], [4]], [[4]]]
    whole = await ask(model, np.concatenate(values), x)
    np.testing.assert_allclose(np.concatenate([result.output(y).data for result in together]), whole.output(y).data, atol=1e-5)


async def test_one_callers_mistake_is_not_the_others_of_its_run(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(torch_repository(tmp_path / "net", size=3))
    found = await asyncio.gather(*(ask(model, values, "x") for values in (rows(1), -rows(1), rows(1))), return_exceptions=True)
    assert isinstance(found[1], ModelFailed)
    assert "a negative number" in str(found[1])
    for result in (found[0], found[2]):
        assert isinstance(result, InferResult)
        assert np.array_equal(result.output("Y__0").data, rows(1) * 2)


async def test_a_broken_graph_and_a_config_that_contradicts_it_are_refused_in_a_sentence(hotel: Hotel, tmp_path: Path) -> None:
    wrong = onnx_repository(tmp_path / "wrong", 1)
    config = wrong / "wrong/config.pbtxt"
    config.write_text(config.read_text().replace('"Y" data_type: TYPE_FP32', '"Y" data_type: TYPE_INT32'))
    with pytest.raises(ModelFailed, match=r"output 'Y' is TYPE_INT32 in the config, TYPE_FP32 in the graph"):
        await hotel.load(wrong)
    other = onnx_repository(tmp_path / "other", 1)
    config = other / "other/config.pbtxt"
    config.write_text(config.read_text().replace('"X"', '"Z"'))
    with pytest.raises(ModelFailed, match=r"the config names the input \['Z'\], the graph has \['X'\]"):
        await hotel.load(other)
