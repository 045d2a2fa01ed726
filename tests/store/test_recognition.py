"""A tensor that is known is found by comparing, and nothing is taken for the same that differs in a bit."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flatshare.core.ids import ArtifactUri, Digest, ModelDigest, TensorDigest
from flatshare.core.spec import ModelManifest, TensorSpec
from flatshare.store import tensors as tensors_module
from flatshare.store.recognition import sketch_of
from flatshare.store.tensors import TensorStore

SHAPE = (300, 200)
TENSOR = np.random.default_rng(0).standard_normal(SHAPE, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def add(store: TensorStore, *arrays: NDArray[np.float32]) -> tuple[TensorSpec, ...]:
    """A model of these tensors."""
    with store.writing() as writer:
        specs = tuple(writer.add_tensor(f"t{index}", array) for index, array in enumerate(arrays))
        graph, tokenizer = writer.add_blob("graph", b"g"), writer.add_blob("tokenizer", b"t")
        digest = ModelDigest("".join(spec.digest for spec in specs)[:64])
        writer.commit(ModelManifest(digest, "bert", graph, tokenizer, specs, 64, 8, False, 0), ArtifactUri(f"file:///{digest}"), "1")
    return specs


def test_a_known_tensor_is_recognised_without_being_hashed(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = add(store, TENSOR)

    def hashed(*_: object) -> TensorDigest:
        raise AssertionError("it was hashed")

    monkeypatch.setattr(tensors_module, "_hashed", hashed)
    assert add(store, TENSOR.copy()) == (first,)
    assert store.usage().packs == 1


def test_a_bit_that_no_sample_looks_at_makes_it_another_tensor(store: TensorStore) -> None:
    other = TENSOR.copy()
    other[100, 101] = np.nextafter(other[100, 101], np.float32(9))
    raw, changed = (array.reshape(-1).view(np.uint8) for array in (TENSOR, other))
    assert sketch_of("x", raw) == sketch_of("x", changed)
    first, second = add(store, TENSOR), add(store, other)
    assert first[0].digest != second[0].digest
    assert store.usage().distinct_bytes == 2 * TENSOR.nbytes


def test_the_same_bytes_in_another_shape_are_another_tensor(store: TensorStore) -> None:
    [first], [second] = add(store, TENSOR), add(store, TENSOR.reshape(200, 300))
    assert first.digest != second.digest


def test_small_tensors_are_hashed(store: TensorStore) -> None:
    small = TENSOR[:2]
    assert sketch_of("x", small.reshape(-1).view(np.uint8)) is None
    assert add(store, small) == add(store, small)


def test_a_pack_that_is_gone_is_no_reason_to_fail(store: TensorStore) -> None:
    first = add(store, TENSOR)
    for pack in store.packs_dir.iterdir():
        pack.unlink()
    assert add(store, TENSOR) == first


def test_a_tensor_that_was_collected_is_no_longer_recognised(store: TensorStore) -> None:
    first = add(store, TENSOR)
    store.catalog.forget_artifact(ArtifactUri(f"file:///{first[0].digest}"))
    store.collect()
    sketch = sketch_of("[300,200]", TENSOR.reshape(-1).view(np.uint8))
    assert sketch is not None
    assert store.catalog.sketched(Digest(sketch)) is None
    assert add(store, TENSOR) == first
    assert store.usage().distinct_bytes == TENSOR.nbytes
