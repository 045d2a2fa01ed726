"""Loaded models that write, and what they are asked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from flatshare.core.call import InferCall, InferResult
from flatshare.core.tensor import text_tensor
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.store.tensors import TensorStore
from tests.checkpoints import imported
from tests.writers import save

Load = Callable[[Any], GeneratingModel]


@pytest.fixture
def backend() -> Iterator[GenerateBackend]:
    running = GenerateBackend(threads=1, cache_bytes=32 << 20, max_jobs=64)
    yield running
    running.stepper.memory.check()
    assert running.stepper.memory.row_bytes == 0
    running.close()


@pytest.fixture
def load(backend: GenerateBackend, tmp_path: Path) -> Load:
    """Import a model of transformers' and load it."""
    store = TensorStore(tmp_path / "store")

    def loaded(model: Any, **files: Any) -> GeneratingModel:
        folder = save(model, tmp_path / f"model-{len(list(tmp_path.iterdir()))}", **files)
        return backend.load(imported(store, folder))

    return loaded


def ask(model: GeneratingModel, *texts: str, **parameters: Any) -> InferResult:
    flat = {name: orjson.dumps(value).decode() if isinstance(value, list) else value for name, value in parameters.items()}
    return model.run(InferCall({"text": text_tensor("text", texts)}, flat))


def texts_of(result: InferResult) -> list[str]:
    return result.output("text").texts()
