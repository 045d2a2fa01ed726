"""A config.json of years ago, or as it was published, says the same in other words: the same weights answer the same."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import transformers

from flatshare.core.call import InferResult
from flatshare.core.errors import UnsupportedModel
from flatshare.core.signature import Task
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.package.config import Config
from flatshare.package.graphs.families import read_trunk
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported
from tests.families import LONG, MAX_TOKENS, TEXTS, save_model, write_sentence_modules
from tests.instance.backends.conftest import Matrix

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import SentenceTransformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Old:
    """How `family` was written: what a config of today has too much, and what it had instead."""

    family: str
    task: Task
    without: tuple[str, ...] = ()
    instead: Callable[[Fields], Fields] = lambda _: {}
    config: tuple[tuple[str, Any], ...] = ()
    """Of the model."""


_THETAS = {
    "full_attention": {"rope_type": "default", "rope_theta": 80_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
_KINDS = ["full_attention", "sliding_attention"] * 2
_MODERN = (("rope_parameters", _THETAS), ("layer_types", _KINDS))
_V3 = ("architectures", "pooler_hidden_size", "legacy", "dtype", "transformers_version", "pooler_hidden_act", "pooler_dropout")
_LABELS = (("id2label", {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),)
OLD = {
    "thetas and every so many layers": Old(
        "modernbert", Task.EMBEDDING, ("rope_parameters", "layer_types"),
        lambda _: {
            "global_rope_theta": 80_000.0, "local_rope_theta": 5000.0, "global_attn_every_n_layers": 2,
            "position_embedding_type": "absolute",
            "layer_norm_eps": 1e-5, "reference_compile": True, "repad_logits_with_grad": False,
        },
        config=_MODERN,
    ),
    "rope_scaling that scales nothing": Old(
        "modernbert", Task.EMBEDDING, ("rope_parameters",),
        lambda _: {"global_rope_theta": 80_000.0, "local_rope_theta": 5000.0, "rope_scaling": {"rope_type": "default"}}, config=_MODERN,
    ),
    "pos_att_type in a text": Old("deberta-v3", Task.EMBEDDING, _V3, lambda _: {"pos_att_type": "p2c|c2p", "torch_dtype": "float32"}),
    "pos_att_type in a text with blanks": Old("deberta-v3", Task.EMBEDDING, _V3, lambda _: {"pos_att_type": "C2P | P2C"}),
    "pos_att_type in a text, v2": Old("deberta-v2", Task.EMBEDDING, (), lambda _: {"pos_att_type": "c2p"}),
    "num_labels alone": Old("bert", Task.CLASSIFICATION, ("id2label", "label2id"), lambda _: {"num_labels": 3}, config=_LABELS),
    "num_labels beside id2label": Old("bert", Task.CLASSIFICATION, (), lambda _: {"num_labels": 3}, config=_LABELS),
    "neither, for the usual two": Old(
        "distilbert", Task.CLASSIFICATION, ("id2label", "label2id"), config=(("num_labels", 2),)
    ),
    "labels in another order": Old(
        "roberta", Task.CLASSIFICATION, (), lambda fields: {"id2label": dict(reversed(fields["id2label"].items()))}, config=_LABELS
    ),
    "nulls, and fields that have gone": Old(
        "bert", Task.CLASSIFICATION, ("layer_norm_eps", "dtype", "use_cache"),
        lambda _: {
            "gradient_checkpointing": False, "torch_dtype": None, "problem_type": None, "position_embedding_type": "absolute",
            "output_past": True, "pruned_heads": {}, "finetuning_task": "mnli", "_num_labels": 3, "_name_or_path": "somewhere",
        },
        config=_LABELS,
    ),
    "what DistilBERT had": Old(
        "distilbert", Task.EMBEDDING, ("dtype",), lambda _: {"sinusoidal_pos_embds": True, "tie_weights_": True, "torch_dtype": "float32"}
    ),
    "flags of pooling": Old("mpnet", Task.EMBEDDING, ("relative_attention_num_buckets",), lambda _: {"gradient_checkpointing": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_an_old_config_answers_as_the_new_one_and_as_transformers(tmp_path: Path, name: str, matrix: Matrix) -> None:
    old, store = OLD[name], TensorStore(tmp_path / "store")
    new_folder, old_folder = save_model(tmp_path / "new", old.family, old.task, **dict(old.config)), tmp_path / "old"
    if old.task is Task.EMBEDDING:
        write_sentence_modules(new_folder, ("Pooling", {"pooling_mode": "mean", "embedding_dimension": 32}))
    shutil.copytree(new_folder, old_folder)
    fields: Fields = orjson.loads((old_folder / "config.json").read_bytes())
    rewritten = {key: value for key, value in fields.items() if key not in old.without} | old.instead(fields)
    (old_folder / "config.json").write_bytes(orjson.dumps(rewritten))
    if old.task is Task.EMBEDDING:
        flags = {
            f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
        }
        (old_folder / "1_Pooling/config.json").write_bytes(orjson.dumps({"word_embedding_dimension": 32, **flags}))
    texts = ["", *TEXTS]
    output = "embedding" if old.task is Task.EMBEDDING else "score"
    new_answer, old_answer = answered(store, new_folder, texts), answered(store, old_folder, texts)
    np.testing.assert_array_equal(old_answer.output(output).data, new_answer.output(output).data)
    if old.task is Task.EMBEDDING:
        matrix(old.family, str(old.task), "old config.json", old_answer.output(output).data, embedded(old_folder, texts))
        return
    pipeline = transformers.pipeline("text-classification", str(old_folder), top_k=None, device="cpu")
    expected = pipeline(texts, truncation=True)
    assert [[label.decode() for label in row] for row in old_answer.output("label").data] == [
        [one["label"] for one in row] for row in expected
    ]
    scores = np.array([[one["score"] for one in row] for row in expected], np.float32)
    matrix(old.family, str(old.task), "old config.json", old_answer.output(output).data, scores)


def answered(store: TensorStore, folder: Path, texts: list[str]) -> InferResult:
    return MappedBackend(concurrent_runs=1).load(imported(store, folder)).run(text_call(*texts))


def embedded(folder: Path, texts: list[str]) -> Any:
    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"}).encode(texts)


def test_the_older_name_of_the_most_tokens_cuts_where_the_newer_one_does(tmp_path: Path, matrix: Matrix) -> None:
    folder = save_model(tmp_path / "model", "bert", Task.EMBEDDING)
    path = folder / "tokenizer_config.json"
    settings: Fields = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({"max_len": settings.pop("model_max_length"), **settings}))
    write_sentence_modules(folder, ("Pooling", {"pooling_mode": "mean", "embedding_dimension": 32}))
    answer = answered(TensorStore(tmp_path / "store"), folder, [LONG])
    assert answer.parameters["tokens"] == (MAX_TOKENS,)
    matrix("bert", "embedding", "old config.json", answer.output("embedding").data, embedded(folder, [LONG]))


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_halves_are_widened_whatever_the_name_of_their_type(tmp_path: Path, name: str, matrix: Matrix) -> None:
    """The weights say what they are; the config only repeats it."""
    folder = save_model(tmp_path / "model", "bert", Task.EMBEDDING)
    transformers.AutoModel.from_pretrained(folder, dtype="float16").save_pretrained(folder)
    fields = orjson.loads((folder / "config.json").read_bytes())
    assert fields.pop("dtype") == "float16"
    (folder / "config.json").write_bytes(orjson.dumps({**fields, name: "float16"}))
    write_sentence_modules(folder, ("Pooling", {"pooling_mode": "mean", "embedding_dimension": 32}))
    found = answered(TensorStore(tmp_path / "store"), folder, [*TEXTS]).output("embedding").data
    matrix("bert", "embedding", f"fp16, {name}", found, embedded(folder, [*TEXTS]))


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}])
def test_positions_that_are_scaled_are_refused_in_both_spellings(tmp_path: Path, scaling: Fields) -> None:
    folder = save_model(tmp_path / "model", "modernbert", Task.EMBEDDING)
    fields: Fields = orjson.loads((folder / "config.json").read_bytes())
    with pytest.raises(UnsupportedModel, match="scaled rotary positions are not served"):
        read_trunk(Config({**fields, "rope_scaling": scaling}))
