"""The import benchmarks measure what they say: complete checkpoints, each another model, only heads stored."""

from pathlib import Path

import pytest

from flatshare.bench import imports
from flatshare.bench.tenants import base_checkpoint
from flatshare.core.signature import Task
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder

pytestmark = pytest.mark.slow


def test_classifiers_on_a_known_trunk_cost_their_head(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    first, second = (import_folder(store, folder) for folder in imports.write_classifiers(base_checkpoint(), tmp_path / "models", 2))
    assert first.manifest.task is Task.CLASSIFICATION
    assert second.new_bytes == 4 * (5 * 384 + 5)
    assert second.manifest.mapped_bytes > 90_000_000
    assert second.manifest.graph == first.manifest.graph


def test_registering_takes_time() -> None:
    assert imports.register_1000_s(2) > 0
