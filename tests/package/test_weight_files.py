"""Weights in other files than one model.safetensors: shards, torch's pickles, modules' folders. The same model comes out of each."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package import pickles
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder, random_weights, safetensors, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, on what it is about to refuse
WEIGHTS = random_weights(1)
NAMES = sorted(WEIGHTS)


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


@pytest.fixture
def whole(store: TensorStore, tmp_path: Path) -> str:
    """The digest of the model as one file of safetensors makes it."""
    return import_folder(store, write_checkpoint(tmp_path / "whole", tensors=WEIGHTS)).manifest.digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without weights."""
    folder = write_checkpoint(tmp_path / "model", tensors=WEIGHTS)
    (folder / "model.safetensors").unlink()
    return folder


def write_shards(folder: Path, *, count: int = 3, suffix: str = "safetensors") -> Path:
    """As save_pretrained() does with a small max_shard_size. The index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places: dict[str, str] = {}
    for shard in range(count):
        file = f"{stem}-{shard + 1:05}-of-{count:05}.{suffix}"
        tensors = {name: WEIGHTS[name] for name in NAMES[shard::count]}
        places |= dict.fromkeys(tensors, file)
        if suffix == "safetensors":
            (folder / file).write_bytes(safetensors(tensors))
        else:
            torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_bytes(orjson.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_the_same_model(store: TensorStore, folder: Path, whole: str, suffix: str) -> None:
    write_shards(folder, suffix=suffix)
    assert import_folder(store, folder).manifest.digest == whole


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_pickle_of_tensors_is_the_same_model(store: TensorStore, folder: Path, whole: str, *, is_legacy: bool) -> None:
    tensors = {name: torch.from_numpy(tensor) for name, tensor in WEIGHTS.items()}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not is_legacy)
    assert import_folder(store, folder).manifest.digest == whole


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")])
def test_a_pickle_of_other_floats_is_widened_and_reported(store: TensorStore, folder: Path, dtype: torch.dtype, name: str) -> None:
    tensors = {key: torch.from_numpy(tensor).to(dtype) for key, tensor in WEIGHTS.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    assert import_folder(store, folder).manifest.notes == (f"{len(tensors)} tensors of {name} were converted to F32",)


def test_safetensors_come_before_a_pickle(store: TensorStore, folder: Path, whole: str) -> None:
    (folder / "model.safetensors").write_bytes(safetensors(WEIGHTS))
    (folder / "pytorch_model.bin").write_bytes(b"whatever")
    assert import_folder(store, folder).manifest.digest == whole


def test_a_transposed_view_in_a_pickle_is_read_as_it_is_meant(store: TensorStore, folder: Path, whole: str) -> None:
    tensors = {name: torch.from_numpy(tensor.T.copy()).t() for name, tensor in WEIGHTS.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    assert import_folder(store, folder).manifest.digest == whole


def test_a_pickle_without_torch_says_what_to_install(store: TensorStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(
        UnsupportedModel, match=r"pytorch_model.bin needs torch.*pip install 'flatshare\[torch\]'.*or save the model as safetensors"
    ):
        pickles.PickleFile(folder / "pytorch_model.bin")


class Evil:
    """What a pickle can do to whoever opens it without care."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("/tmp/flatshare-was-here"),)


BAD_PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save({"a": Evil()}, path), "holds more than tensors"),
    "code in the old format": (
        lambda path: torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False),
        "holds more than tensors",
    ),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "damaged, or holds more"),
    "nothing": (lambda path: path.write_bytes(b""), "damaged"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 10), "damaged"),
    "half of a file": (lambda path: (torch.save({"a": torch.zeros(1000)}, path), path.write_bytes(path.read_bytes()[:900])), "damaged"),
    "a tensor alone": (lambda path: torch.save(torch.zeros(3), path), "something other than tensors by name"),
    "a training state": (lambda path: torch.save({"model": {"a": torch.zeros(3)}}, path), "something other than tensors by name"),
    "integers": (lambda path: torch.save({n: torch.from_numpy(t).long() for n, t in WEIGHTS.items()}, path), "is of type I64"),
    "a tensor too few": (lambda path: torch.save({NAMES[0]: torch.from_numpy(WEIGHTS[NAMES[0]])}, path), "lacks the tensor"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_pickle_that_is_no_state_dict_is_refused_and_runs_nothing(store: TensorStore, folder: Path, case: str) -> None:
    write, sentence = BAD_PICKLES[case]
    write(folder / "pytorch_model.bin")
    with pytest.raises(BadPackage, match=sentence):
        import_folder(store, folder)
    assert not Path("/tmp/flatshare-was-here").exists()
    assert store.catalog.disk_bytes() == 0


def _edit(index: Path, **changes: Any) -> None:
    index.write_bytes(orjson.dumps({**orjson.loads(index.read_bytes()), **changes}))


BAD_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (
        lambda index: (index.parent / "model-00002-of-00003.safetensors").unlink(),
        "model-00002-of-00003.safetensors is missing",
    ),
    "a shard is cut": (lambda index: (index.parent / "model-00002-of-00003.safetensors").write_bytes(b"1234567"), "has 7 bytes"),
    "shards of another model": (
        lambda index: (index.parent / "model-00001-of-00003.safetensors").write_bytes(safetensors({"x": np.zeros(2, np.float32)})),
        r"model-00001-of-00003.safetensors lacks the tensor .* that model.safetensors.index.json says it has",
    ),
    "no map": (lambda index: index.write_bytes(b"{}"), "has no weight_map"),
    "an empty map": (lambda index: _edit(index, weight_map={}), "has no weight_map"),
    "a map of numbers": (lambda index: _edit(index, weight_map={"a": 1}), "has no weight_map"),
    "a map upwards": (lambda index: _edit(index, weight_map={"a": "../model.safetensors"}), "shards lie beside their index"),
    "a map to the root": (lambda index: _edit(index, weight_map={"a": "/etc/passwd"}), "shards lie beside their index"),
    "a map with a NUL": (lambda index: _edit(index, weight_map={"a": "a\0b"}), "shards lie beside their index"),
    "a thousand and one shards": (
        lambda index: _edit(index, weight_map={str(n): f"{n}.safetensors" for n in range(1001)}),
        "names 1001 files",
    ),
    "an index that is no JSON": (lambda index: index.write_bytes(b"{"), "not valid JSON"),
    "a tensor too few": (
        lambda index: _edit(index, weight_map={NAMES[0]: "model-00001-of-00003.safetensors"}),
        "checkpoint lacks the tensor",
    ),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_shards_that_do_not_fit_their_index_are_refused(store: TensorStore, folder: Path, case: str) -> None:
    spoil, sentence = BAD_SHARDS[case]
    spoil(write_shards(folder))
    with pytest.raises(BadPackage, match=sentence):
        import_folder(store, folder)
