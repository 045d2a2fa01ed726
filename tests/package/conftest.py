"""An export by torch takes ten seconds and more, so it is done once for all tests."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from transformers import AlbertConfig, AlbertForSequenceClassification

from flatshare.package import exporting, foreign
from tests.families import fast_tokenizer, randomize


def save_albert(folder: Path, *, seed: int = 0) -> Path:
    """A family without a generated graph."""
    words = fast_tokenizer("word_piece")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "embedding_size": 16}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=len(words), max_position_embeddings=64, num_labels=3, **sizes))
    randomize(model, seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Exported:
    """A checkpoint, and what the export of it wrote."""

    checkpoint: Path
    graph: Path
    report: dict[str, object]


@pytest.fixture(scope="session")
def albert(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("albert")
    checkpoint = save_albert(folder / "checkpoint")
    (folder / "out").mkdir()
    report = foreign._run_export(folder / "out", checkpoint, "AutoModelForSequenceClassification")
    return Exported(checkpoint, folder / "out" / exporting.GRAPH, report)


@pytest.fixture
def with_onnx(albert: Exported, tmp_path: Path) -> Path:
    """The same as a checkpoint whose only weights are in onnx/model.onnx."""
    folder = tmp_path / "with_onnx"
    shutil.copytree(albert.checkpoint, folder)
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    shutil.copyfile(albert.graph, folder / "onnx/model.onnx")
    assert orjson.loads((folder / "config.json").read_bytes())["model_type"] == "albert"
    return folder
