"""From a checkpoint to the store: each distinct tensor once, and nothing at all of what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flatshare.core.errors import BadPackage
from flatshare.package.weights import WeightsFile
from flatshare.store.mapping import MapPool
from flatshare.store.tensors import TensorStore
from tests.checkpoints import CONFIG, Tensors, import_folder, imported, random_weights, write_checkpoint
from tests.checkpoints import safetensors as packed


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def read_back(store: TensorStore, folder: Path) -> Tensors:
    """The model's tensors as the engine would see them."""
    stored = imported(store, folder)
    pool = MapPool()
    places = {t.name: (stored.places[t.digest], t) for t in stored.manifest.tensors}
    return {name: pool.get(store.pack_path(p.pack)).tensor(p.offset, t.shape, t.size_bytes) for name, (p, t) in places.items()}


def assert_equal(actual: Tensors, expected: Tensors) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)


def test_what_was_imported_is_in_the_store_bit_for_bit(store: TensorStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", seed=1)
    assert_equal(read_back(store, folder), random_weights(1))


def test_the_same_weights_under_another_name_store_nothing_new(store: TensorStore, tmp_path: Path) -> None:
    first = import_folder(store, write_checkpoint(tmp_path / "a", seed=1))
    disk = store.catalog.disk_bytes()
    second = import_folder(store, write_checkpoint(tmp_path / "b", seed=1))
    assert first.new_bytes == first.manifest.mapped_bytes
    assert second.new_bytes == 0
    assert second.manifest.digest == first.manifest.digest
    assert store.catalog.disk_bytes() == disk
    assert store.usage().models == 1


def test_a_fine_tuning_with_frozen_embeddings_shares_them(store: TensorStore, tmp_path: Path) -> None:
    base = random_weights(1)
    tuned = random_weights(2, embeddings_seed=1)
    frozen = sum(tensor.nbytes for name, tensor in tuned.items() if name.startswith("embeddings."))
    import_folder(store, write_checkpoint(tmp_path / "base", tensors=base))
    report = import_folder(store, write_checkpoint(tmp_path / "tuned", tensors=tuned))
    biases = {tensor.tobytes() for tensor in tuned.values()} & {tensor.tobytes() for tensor in base.values()}
    assert len(biases) == 5  # the embeddings and nothing else
    assert report.new_bytes == report.manifest.mapped_bytes - frozen
    assert_equal(read_back(store, tmp_path / "tuned"), tuned)
    assert_equal(read_back(store, tmp_path / "base"), base)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")])
def test_other_floats_are_converted_and_reported(store: TensorStore, tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    tensors = {key: torch.from_numpy(value).to(dtype) for key, value in random_weights(3).items()}
    folder = write_checkpoint(tmp_path / "a")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    manifest = import_folder(store, folder).manifest
    assert manifest.notes == (f"{len(tensors)} tensors of {name} were converted to F32",)
    assert_equal(read_back(store, folder), {key: value.to(torch.float32).numpy() for key, value in tensors.items()})


def test_a_tensor_of_another_shape_is_refused_and_nothing_is_stored(store: TensorStore, tmp_path: Path) -> None:
    tensors = random_weights(1)
    tensors["encoder.layer.0.output.dense.weight"] = tensors["encoder.layer.0.output.dense.weight"].T.copy()
    with pytest.raises(BadPackage, match=r"'encoder.layer.0.output.dense.weight' has shape \[64, 32\], config.json asks for \[32, 64\]"):
        import_folder(store, write_checkpoint(tmp_path / "a", tensors=tensors))
    assert store.catalog.disk_bytes() == 0
    assert [*store.packs_dir.iterdir(), *store.blobs_dir.iterdir()] == []


def test_a_missing_tensor_is_named(store: TensorStore, tmp_path: Path) -> None:
    tensors = random_weights(1)
    del tensors["embeddings.LayerNorm.bias"]
    with pytest.raises(BadPackage, match=r"lacks the tensor 'embeddings.LayerNorm.bias'"):
        import_folder(store, write_checkpoint(tmp_path / "a", tensors=tensors))


def test_integers_in_place_of_weights_are_refused(store: TensorStore, tmp_path: Path) -> None:
    tensors = random_weights(1)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(CONFIG["hidden_size"], np.int64)
    with pytest.raises(BadPackage, match=r"'embeddings.LayerNorm.bias' is of type I64"):
        import_folder(store, write_checkpoint(tmp_path / "a", tensors=tensors))


def old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_old_names_and_prefixes_make_the_same_model(store: TensorStore, tmp_path: Path) -> None:
    tensors = random_weights(1)
    spellings = [tensors, {f"bert.{k}": v for k, v in tensors.items()}, {old_name(k): v for k, v in tensors.items()}]
    spellings.append({f"bert.{old_name(k)}": v for k, v in tensors.items()})
    digests = {import_folder(store, write_checkpoint(tmp_path / str(i), tensors=t)).manifest.digest for i, t in enumerate(spellings)}
    assert len(digests) == 1


def test_tensors_that_nothing_uses_are_left_out(store: TensorStore, tmp_path: Path) -> None:
    tensors: Tensors = {**random_weights(1), "pooler.dense.weight": np.ones((32, 32), np.float32), "embeddings.position_ids": np.arange(64)}
    report = import_folder(store, write_checkpoint(tmp_path / "a", tensors=tensors))
    assert report.manifest.digest == import_folder(store, write_checkpoint(tmp_path / "b", seed=1)).manifest.digest
    assert report.new_bytes == sum(tensor.nbytes for tensor in random_weights(1).values())


def test_a_tensor_that_occurs_twice_is_stored_once(store: TensorStore, tmp_path: Path) -> None:
    tensors = random_weights(1)
    name = "encoder.layer.0.attention.self"
    tensors[f"{name}.key.weight"] = tensors[f"{name}.query.weight"].copy()
    folder = write_checkpoint(tmp_path / "a", tensors=tensors)
    manifest = import_folder(store, folder).manifest
    assert manifest.mapped_bytes == sum(tensor.nbytes for tensor in tensors.values()) - tensors[f"{name}.key.weight"].nbytes
    assert_equal(read_back(store, folder), tensors)


def test_the_identity_changes_with_all_that_decides_an_answer(store: TensorStore, tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / str(i), seed=1) for i in range(5)]
    (folders[1] / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (folders[2] / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    (folders[3] / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (folders[4] / "tokenizer.json").write_text((folders[4] / "tokenizer.json").read_text().replace('"lowercase":true', '"lowercase":false'))
    assert len({import_folder(store, folder).manifest.digest for folder in folders}) == 5


def test_a_file_whose_data_is_not_aligned_is_read_right(store: TensorStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", seed=1)
    content = packed(random_weights(1))
    length = int.from_bytes(content[:8], "little")
    odd = (length + 3).to_bytes(8, "little") + content[8 : 8 + length] + b"   " + content[8 + length :]
    (folder / "model.safetensors").write_bytes(odd)
    assert next(iter(WeightsFile(folder / "model.safetensors").entries.values())).begin % 4
    assert_equal(read_back(store, folder), random_weights(1))
