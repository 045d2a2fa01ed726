"""Compact models: what quantising changes is bounded and measured, and what it costs is a quarter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.package.generation.compact import compact_source
from flatshare.package.tensor_source import Source
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder
from tests.instance.backends.generate.conftest import ask, texts_of
from tests.writers import llama, save, t5


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 64))
def test_no_weight_moves_by_more_than_half_a_step(seed: int, outputs: int, inputs: int) -> None:
    matrix = np.random.default_rng(seed).normal(0, 1, (outputs, inputs)).astype(np.float32)
    sources = {"a.weight": Source(matrix.shape, "F32", lambda: matrix)}
    quantised, scale = (compact_source(sources, f"a.weight.{ending}") for ending in ("int8", "scale"))
    assert quantised is not None
    assert scale is not None
    assert quantised.shape == (inputs, outputs)
    back = (quantised.read().astype(np.float32) * scale.read()).T
    assert np.all(np.abs(back - matrix) <= scale.read()[:, None] * 0.5001)


def test_a_matrix_that_would_lose_too_much_is_refused() -> None:
    matrix = np.random.default_rng(0).normal(0, 1, (4, 400)).astype(np.float32)
    source = compact_source({"a.weight": Source(matrix.shape, "F32", lambda: matrix)}, "a.weight.int8")
    assert source is not None
    assert source.read().dtype == np.int8
    matrix[:, 0] = 200.0  # one weight of a row sets the step of all
    with pytest.raises(BadPackage, match=r"leave out flatshare\.json"):
        source.read()


@pytest.mark.parametrize("make", [t5, llama])
def test_a_compact_model_writes_from_a_third_of_the_memory(tmp_path: Path, make: Callable[[int], Any]) -> None:
    store = TensorStore(tmp_path / "store")
    model = make(1)
    with torch.no_grad():  # small weights, which behave as trained ones do
        for parameter in model.parameters():
            parameter.mul_(0.5)
    plain = import_folder(store, save(model, tmp_path / "plain")).manifest
    compact = import_folder(store, save(model, tmp_path / "compact", flatshare={"weights": "int8"})).manifest
    assert compact.graph != plain.graph
    kinds = {tensor.dtype for tensor in compact.tensors}
    assert kinds == {"F32", "I8"}
    rotary = sum(tensor.size_bytes for tensor in plain.tensors if tensor.name.startswith("rotary"))
    assert compact.mapped_bytes - rotary < 0.6 * (plain.mapped_bytes - rotary)
    backend = GenerateBackend(threads=1, cache_bytes=1 << 24, max_jobs=4)
    stored = store.stored(compact.digest)
    assert stored is not None
    try:
        loaded = backend.load(stored)
        assert texts_of(ask(loaded, "the order", max_tokens=10)) == texts_of(ask(loaded, "the order", max_tokens=10))
    finally:
        backend.close()
    assert all(is_sound for _, is_sound in store.verify())


def test_other_kinds_of_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="weights 'int4' are not served"):
        import_folder(TensorStore(tmp_path / "store"), save(llama(1), tmp_path / "m", flatshare={"weights": "int4"}))
