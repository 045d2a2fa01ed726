"""Families that torch exports answer as transformers and sentence-transformers do, each with its own way to a vector or to labels.

ALBERT's export runs in the process that it is made for (test_foreign.py), and one of these; the others run here, where torch is imported.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
import transformers
from numpy.typing import NDArray

from flatshare.core.call import InferResult
from flatshare.core.errors import UnsupportedModel
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.package import exporting, foreign, onnx_files
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import import_folder, imported
from tests.families import TEXTS, fast_tokenizer, randomize, write_sentence_modules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import SentenceTransformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
_BART = {
    f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 1, "eos_token_id": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True)
class Family:
    """The prefix of transformers' classes, the sizes in its own words, the tokenizer's kind."""

    classes: str
    sizes: Mapping[str, Any]
    tokenizer: str = "word_piece"
    model: str = field(default="", kw_only=True)
    """The class of the bare model, if it is not called …Model."""


FAMILIES = {
    "bart": Family("Bart", {"d_model": 32, "max_position_embeddings": 64, **_BART}, "byte_level"),
    "convbert": Family("ConvBert", {**_SIZES, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}),
    "fnet": Family("FNet", {name: size for name, size in _SIZES.items() if name != "num_attention_heads"}),
    "gpt2": Family("GPT2", _GPT2, "byte_level"),
    "roformer": Family("RoFormer", {**_SIZES, "embedding_size": 16}),
    "squeezebert": Family("SqueezeBert", {**_SIZES, "embedding_size": 32}),
    "t5": Family("T5", _T5, "unigram", model="T5EncoderModel"),
    "xmod": Family("Xmod", {**_SIZES, "pad_token_id": 1}, "unigram"),
}


IN_A_PROCESS_OF_ITS_OWN = "squeezebert"


@pytest.fixture(autouse=True)
def _exported_here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """In this process, which saves the seconds in which another one would import torch."""
    if f"[{IN_A_PROCESS_OF_ITS_OWN}]" in request.node.name:
        yield
        return

    def export(out: Path, checkpoint: Path, head: str) -> dict[str, Any]:
        (out / "job.json").write_bytes(orjson.dumps({"checkpoint": str(checkpoint), "head": head}))
        exporting.main(out / "job.json")
        report: dict[str, Any] = orjson.loads((out / exporting.REPORT).read_bytes())
        return report

    monkeypatch.setattr(foreign, "_run_export", export)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compared(record_property: Any) -> Callable[..., None]:
    def compare(family: str, task: str, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        assert actual.shape == expected.shape
        difference = onnx_files.difference(actual, expected)
        record_property("equality", (family, task, "exported", difference))
        assert difference <= 1e-5  # less than an import insists on

    return compare


def save(folder: Path, family: str, head: str, **config: Any) -> Path:
    kind = FAMILIES[family]
    words = fast_tokenizer(kind.tokenizer)
    name = (kind.model or f"{kind.classes}Model") if head == "Model" else f"{kind.classes}{head}"
    model = getattr(transformers, name)(getattr(transformers, f"{kind.classes}Config")(vocab_size=len(words), **kind.sizes, **config))
    randomize(model, 0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def answered(folder: Path, *texts: str) -> InferResult:
    stored = imported(TensorStore(folder.parent / "store"), folder)
    assert any(note.startswith("exported from torch") for note in stored.manifest.notes)
    return MappedBackend(concurrent_runs=1).load(stored).run(text_call(*texts))


@pytest.mark.parametrize("family", ["fnet", "gpt2"])
def test_sentence_embeddings(tmp_path: Path, family: str, compared: Callable[..., None]) -> None:
    folder = save(tmp_path / "model", family, "Model")
    write_sentence_modules(folder, ("Pooling", {"pooling_mode": ["mean", "lasttoken"], "word_embedding_dimension": 32}), ("Normalize", {}))
    texts = ["", *TEXTS]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=1)  # FNet mixes padding into a text
    compared(family, "embedding", answered(folder, *texts).output("embedding").data, expected)


def test_instructors_are_encoders_of_t5_that_do_not_pool_their_prompt(tmp_path: Path, compared: Callable[..., None]) -> None:
    folder = save(tmp_path / "model", "t5", "Model")
    pooling = {"pooling_mode": "mean", "word_embedding_dimension": 32, "include_prompt": False}
    write_sentence_modules(folder, ("Pooling", pooling), ("Normalize", {}), prompts={"query": "help me "}, default_prompt_name="query")
    expected = SentenceTransformer(str(folder), device="cpu").encode([*TEXTS])
    compared("t5", "embedding, prompt not pooled", answered(folder, *TEXTS).output("embedding").data, expected)


@pytest.mark.parametrize("family", ["bart", "convbert", "gpt2"])
def test_classification(tmp_path: Path, family: str, compared: Callable[..., None]) -> None:
    """Also by decoders: GPT-2 without a padding token, and BART, which looks for the last end token of a text."""
    folder = save(tmp_path / "model", family, "ForSequenceClassification", num_labels=3)
    pipeline = transformers.pipeline("text-classification", str(folder), top_k=None, device="cpu")
    texts = ["", *TEXTS, "an </s> in the order", "an order </s> in"]
    expected = [{row["label"]: row["score"] for row in rows} for rows in pipeline(texts, truncation=True)]
    result = answered(folder, *texts)
    rows = zip(result.output("label").data, expected, strict=True)
    scores = np.array([[scores[label.decode()] for label in labels] for labels, scores in rows], np.float32)
    compared(family, "classification", result.output("score").data, scores)


@pytest.mark.parametrize("family", ["roformer", "squeezebert"])
def test_token_classification(tmp_path: Path, family: str, compared: Callable[..., None]) -> None:
    folder = save(tmp_path / "model", family, "ForTokenClassification", id2label={0: "O", 1: "B-ORDER", 2: "I-ORDER"})
    pipeline = transformers.pipeline("token-classification", str(folder), ignore_labels=[], device="cpu")
    expected = [token for text in TEXTS for token in pipeline(text)]
    result = answered(folder, *TEXTS)
    assert result.output("label").texts() == [token["entity"] for token in expected]
    scores = np.array([token["score"] for token in expected], np.float32)
    compared(family, "token classification", result.output("score").data, scores)


def test_what_torch_cannot_export_is_refused_with_its_own_reason_and_the_way_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "xmod", "Model")
    with pytest.raises(UnsupportedModel) as caught:
        import_folder(TensorStore(tmp_path / "store"), folder)
    sentence = str(caught.value)
    assert "model_type is 'xmod'" in sentence
    assert "failed: ValueError: Input language unknown. Please call `XmodPreTrainedModel.set_default_language()`" in sentence
    assert "model.onnx" in sentence


def test_a_model_that_writes_is_not_taken_for_an_encoder(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "gpt2", "LMHeadModel")
    with pytest.raises(UnsupportedModel, match="'GPT2LMHeadModel' is not served"):
        import_folder(TensorStore(tmp_path / "store"), folder)
