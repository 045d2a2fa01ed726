"""The matrix's other axis: whatever files the weights come in, every task answers as transformers does."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
import transformers

from flatshare.core.call import InferCall
from flatshare.core.signature import Task
from flatshare.core.tensor import text_tensor
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported
from tests.families import TEXTS, save_model, write_sentence_modules
from tests.instance.backends.conftest import Array, Matrix

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import CrossEncoder, SentenceTransformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _sharded(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len([*folder.glob("model-*.safetensors")]) > 1


def _bin(model: Any, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def _narrow(kind: torch.dtype) -> Callable[[Any, Path], None]:
    return lambda model, folder: model.to(kind).save_pretrained(folder)


SOURCES: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "random, sharded": ("roberta", _sharded),
    "random, fp16": ("mpnet", _narrow(torch.float16)),
    "random, bf16": ("modernbert", _narrow(torch.bfloat16)),
    "random, pytorch_model.bin": ("deberta-v3", _bin),
}
"""A family each, and how its weights are written."""


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("task", [Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING])
def test_weights_in_any_files_answer_alike(tmp_path: Path, task: Task, source: str, matrix: Matrix) -> None:
    family, write = SOURCES[source]
    folder = save_model(tmp_path / "model", family, task)
    name = orjson.loads((folder / "config.json").read_bytes())["architectures"][0]
    whole = getattr(transformers, name).from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    write(whole, folder)
    if task is Task.EMBEDDING:
        write_sentence_modules(folder, ("Pooling", {"pooling_mode": "mean", "word_embedding_dimension": 32}))
    model = MappedBackend(concurrent_runs=1).load(imported(TensorStore(tmp_path / "store"), folder))
    matrix(family, str(task).replace("-", " "), source, _answer(model, task), _expected(folder, name, task))


def _answer(model: MappedModel, task: Task) -> Array:
    texts, found = ["", *TEXTS], "logits"
    call = text_call(*texts)
    if task is Task.RANKING:
        call, found = InferCall({"query": text_tensor("query", ["my order"]), "passages": text_tensor("passages", texts)}), "score"
    elif task is Task.EMBEDDING:
        found = "embedding"
    answer: Array = model.run(call).output(found).data
    return answer


def _expected(folder: Path, name: str, task: Task) -> Array:
    """transformers' own, in float32; of tokens without the special ones."""
    texts, single = ["", *TEXTS], {"dtype": torch.float32}
    if task is Task.EMBEDDING:
        vectors: Array = SentenceTransformer(str(folder), device="cpu", model_kwargs=single).encode(texts)
        return vectors
    if task is Task.RANKING:
        scores: Array = CrossEncoder(str(folder), device="cpu", model_kwargs=single).predict([("my order", text) for text in texts])
        return scores
    model, tokenizer = (
        getattr(transformers, name).from_pretrained(folder, **single).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        rows = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.numpy()[0] for text in texts]
    return np.concatenate([row[1:-1] for row in rows]) if task is Task.TOKEN_CLASSIFICATION else np.stack(rows)
