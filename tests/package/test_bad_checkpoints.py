"""The bad-input matrix: every file of a checkpoint missing, cut, of another kind, contradictory or hostile, for every family and task.

Whatever is wrong, the importer says so in a sentence that names the file or the field, and the store stays as it was.
"""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatshare.core.errors import BadPackage
from flatshare.core.signature import Task
from flatshare.package import foreign
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder
from tests.families import FAMILIES, save_model, write_sentence_modules

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Spoil = Callable[[Path], object]
Good = Callable[[str, Task], Path]
TASKS = (Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING)
KINDS = [(family, task) for family in FAMILIES for task in TASKS]
SIZES = {"distilbert": ("dim", "n_layers", "n_heads", "hidden_dim")}
USUAL_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """Makes checkpoints that are as they should be, each once."""

    @cache
    def make(family: str, task: Task) -> Path:
        folder = save_model(tmp_path_factory.mktemp("good") / "model", family, task)
        if task is Task.EMBEDDING:
            mean = {"pooling_mode": "mean", "embedding_dimension": 32}
            write_sentence_modules(folder, ("Pooling", mean), ("Dense", DENSE), ("Normalize", {}))
            tensors = {"linear.weight": torch.ones(8, 32), "linear.bias": torch.zeros(8)}
            safetensors.torch.save_file(tensors, folder / "2_Dense/model.safetensors")
        return folder

    return make


DENSE = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no generated graph covers is refused at once: whether torch could export it is another test's question."""
    monkeypatch.setattr(foreign, "find_spec", lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def refused(store: TensorStore, folder: Path) -> str:
    """The sentence."""
    with pytest.raises(BadPackage) as caught:
        import_folder(store, folder)
    assert store.catalog.disk_bytes() == 0
    assert [*store.packs_dir.iterdir(), *store.blobs_dir.iterdir()] == []
    sentence = str(caught.value)
    assert len(sentence) < 1000
    return sentence


def spoiled(original: Path, tmp_path: Path, spoil: Spoil) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    spoil(folder)
    return folder


def config(**changes: Any) -> Spoil:
    """Sets fields of config.json; those set to None are taken out."""

    def spoil(folder: Path) -> None:
        fields = {**orjson.loads((folder / "config.json").read_bytes()), **changes}
        (folder / "config.json").write_bytes(orjson.dumps({name: value for name, value in fields.items() if value is not None}))

    return spoil


def cut(name: str, left: int = -10) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:left])


def content(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def tensors(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        found = safetensors.torch.load_file(folder / "model.safetensors")
        change(found)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors")

    return spoil


def _drop_one(found: dict[str, Any]) -> None:
    del found[min(name for name in found if "ayer" in name and name.endswith("weight"))]


def _widen_one(found: dict[str, Any]) -> None:
    name = min(name for name in found if "ayer" in name and name.endswith("weight"))
    found[name] = torch.cat([found[name], found[name]])


def _integers(found: dict[str, Any]) -> None:
    found.update({name: tensor.long() for name, tensor in found.items()})


EVERYWHERE: dict[str, tuple[Spoil, str]] = {
    "no config": (without("config.json"), "config.json is missing"),
    "a cut config": (cut("config.json"), "config.json is not valid JSON"),
    "a config that is a list": (content("config.json", b"[]"), "config.json is not a JSON object"),
    "no weights": (without("model.safetensors"), "model.safetensors is missing"),
    "cut weights": (cut("model.safetensors"), "model.safetensors is truncated"),
    "weights cut in their header": (cut("model.safetensors", 40), "claims a header"),
    "empty weights": (content("model.safetensors", b""), "has 0 bytes"),
    "weights with more at their end": (lambda f: (f / "model.safetensors").open("ab").write(b"12345678"), "longer than its tensors"),
    "a tensor too few": (tensors(_drop_one), "checkpoint lacks the tensor"),
    "a tensor of another shape": (tensors(_widen_one), "weights and config do not belong together"),
    "integers for weights": (tensors(_integers), "weights must be F32"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json is missing"),
    "a cut tokenizer": (cut("tokenizer.json"), "tokenizer.json is not valid JSON"),
    "an empty tokenizer": (content("tokenizer.json", b"{}"), "tokenizer.json cannot be used"),
    "a smaller vocabulary than the tokenizer's": (config(vocab_size=20), "do not belong together"),
    "an unknown activation": (config(hidden_act="swish", activation="swish", hidden_activation="swish"), "'swish' is not served"),
    "an unknown family": (config(model_type="mamba"), "model_type is 'mamba'"),
    "no family": (config(model_type=None), "model_type is None"),
    "a family that is a list": (config(model_type=["bert"]), "model_type is ['bert']"),
    "architectures that are a text": (config(architectures="BertModel"), "architectures must be a list of names"),
}


@pytest.mark.parametrize("case", EVERYWHERE)
@pytest.mark.parametrize(("family", "task"), KINDS)
def test_a_spoiled_checkpoint_is_refused_with_what_is_wrong(
    store: TensorStore, good: Good, tmp_path: Path, family: str, task: Task, case: str
) -> None:
    spoil, sentence = EVERYWHERE[case]
    if case == "architectures that are a text" and task is Task.EMBEDDING:
        sentence = "architectures must be a list"
    assert sentence in refused(store, spoiled(good(family, task), tmp_path, spoil))


@pytest.mark.parametrize("value", [0, -1, "32", 1.5, True, 2**40, [32]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_that_is_no_size_is_refused_by_name(store: TensorStore, good: Good, tmp_path: Path, family: str, value: object) -> None:
    for index, name in enumerate((*SIZES.get(family, USUAL_SIZES), "vocab_size", "max_position_embeddings")):
        assert name in refused(store, spoiled(good(family, Task.CLASSIFICATION), tmp_path / str(index), config(**{name: value})))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_do_not_divide_the_width_are_refused(store: TensorStore, good: Good, tmp_path: Path, family: str) -> None:
    name = SIZES.get(family, USUAL_SIZES)[2]
    assert "contradicts itself" in refused(store, spoiled(good(family, Task.CLASSIFICATION), tmp_path, config(**{name: 5})))


def pooling(**fields: Any) -> Spoil:
    return content("1_Pooling/config.json", orjson.dumps(fields))


def dense(**changes: Any) -> Spoil:
    return content("2_Dense/config.json", orjson.dumps({**DENSE, **changes}))


def stated(**fields: Any) -> Spoil:
    return content("config_sentence_transformers.json", orjson.dumps(fields))


def _several_modules(folder: Path) -> None:
    modules = [{"type": "Transformer", "path": ""}, {"type": "LogitScore", "path": "1"}]
    (folder / "modules.json").write_bytes(orjson.dumps(modules))
    stated(model_type="CrossEncoder")(folder)


BY_TASK: dict[Task, dict[str, tuple[Spoil, str]]] = {
    Task.EMBEDDING: {
        "modules that are an object": (content("modules.json", b"{}"), "modules.json is not a list"),
        "cut modules": (cut("modules.json"), "modules.json is not valid JSON"),
        "no pooling config": (without("1_Pooling/config.json"), "1_Pooling/config.json is missing"),
        "pooling of another width": (pooling(pooling_mode="mean", embedding_dimension=16), "they contradict each other"),
        "a prompt that is pooled or not": (pooling(pooling_mode="mean", include_prompt="no"), "include_prompt must be true or false"),
        "no dense weights": (without("2_Dense/model.safetensors"), "2_Dense/model.safetensors is missing"),
        "cut dense weights": (cut("2_Dense/model.safetensors"), "model.safetensors is truncated"),
        "a dense layer of another width": (dense(in_features=16), "in_features is 16, but what comes before gives 32"),
        "a dense layer of other weights": (dense(out_features=9), "has shape [8, 32], config.json asks for [9, 32]"),
        "an unknown activation": (dense(activation_function="torch.nn.Softshrink"), "'torch.nn.Softshrink' is not served"),
        "a dense layer over tokens": (dense(module_input_name="token_embeddings"), "anything but the sentence embedding"),
        "a sparse encoder": (stated(model_type="SparseEncoder"), "describes a SparseEncoder"),
        "prompts that are a list": (stated(prompts=["a"]), "prompts must be an object of texts"),
        "prompts that are numbers": (stated(prompts={"a": 1}), "prompts must be an object of texts"),
        "a default prompt of nobody": (stated(prompts={}, default_prompt_name="a"), "default_prompt_name 'a' is none of its prompts"),
        "dimensions of nothing": (stated(truncate_dim=0), "truncate_dim must be a positive integer"),
        "dimensions that are a text": (stated(truncate_dim="8"), "truncate_dim must be a positive integer"),
    },
    Task.CLASSIFICATION: {
        "labels that are a list": (config(id2label=["a", "b", "c"]), "id2label must be an object"),
        "labels with a gap": (config(id2label={"0": "a", "2": "b", "3": "c"}), "a label for each number from 0 to 2"),
        "labels that are lists": (config(id2label={"0": [], "1": [], "2": []}), "a label for each number from 0 to 2"),
        "no labels": (config(id2label={}), "id2label must be an object of 1 to"),
        "more labels than the head has": (config(id2label={str(n): "x" for n in range(4)}), "weights and config do not belong together"),
        "an unknown problem": (config(problem_type="ordinal"), "problem_type 'ordinal' is not served"),
        "another architecture": (config(architectures=["XForQuestionAnswering"]), "'XForQuestionAnswering' is not served"),
    },
    Task.TOKEN_CLASSIFICATION: {
        "more labels than the head has": (config(id2label={str(n): "x" for n in range(4)}), "weights and config do not belong together"),
        "labels that are numbers of text": (config(id2label={"a": "b"}), "a label for each number from 0 to 0"),
    },
    Task.RANKING: {
        "an activation of torch's that is not served": (
            config(sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"}),
            "activation 'torch.nn.modules.activation.Tanh' is not served",
        ),
        "settings that are a list": (config(sentence_transformers=[]), "sentence_transformers must be an object"),
        "several modules": (
            _several_modules,
            "a cross-encoder of several modules",
        ),
    },
}  # fmt: skip
CASES = [(task, case) for task, cases in BY_TASK.items() for case in cases]


@pytest.mark.parametrize(("task", "case"), CASES)
def test_what_only_a_task_has_is_refused_with_what_is_wrong(store: TensorStore, good: Good, tmp_path: Path, task: Task, case: str) -> None:
    spoil, sentence = BY_TASK[task][case]
    assert sentence in refused(store, spoiled(good("bert", task), tmp_path, spoil))


BY_FAMILY: dict[str, tuple[str, Spoil, str]] = {
    "RoBERTa without room behind its padding": ("roberta", config(pad_token_id=51), "leaves no room behind pad_token_id 51"),
    "RoBERTa with a negative padding": ("roberta", config(pad_token_id=-1), "pad_token_id must be an integer from 0"),
    "BERT with relative positions": ("bert", config(position_embedding_type="relative_key"), "position_embedding_type 'relative_key'"),
    "BERT as a decoder": ("bert", config(is_decoder=True), "a decoder"),
    "MPNet with other buckets": ("mpnet", config(relative_attention_num_buckets=64), "relative_attention_num_buckets 64 is not served"),
    "MPNet of two positions": ("mpnet", config(max_position_embeddings=2), "leaves no room for text"),
    "DeBERTa without relative attention": ("deberta-v3", config(relative_attention=False), "relative_attention False is not served"),
    "DeBERTa with a convolution": ("deberta-v3", config(conv_kernel_size=3), "conv_kernel_size 3 is not served"),
    "DeBERTa with an unknown term": ("deberta-v3", config(pos_att_type=["p2p"]), "pos_att_type ['p2p'] is not served"),
    "DeBERTa without terms": ("deberta-v3", config(pos_att_type=[]), "pos_att_type [] is not served"),
    "DeBERTa with other buckets than its weights": ("deberta-v3", config(position_buckets=32), "do not belong together"),
    "ModernBERT with scaled positions": ("modernbert", config(rope_scaling={"type": "yarn"}), "scaled rotary positions are not served"),
    "ModernBERT with layers of another kind": ("modernbert", config(layer_types=["linear"] * 4), "layer_types must name"),
    "ModernBERT with a layer type too few": ("modernbert", config(layer_types=["full_attention"]), "layer_types must name"),
    "ModernBERT with an unknown pooling": ("modernbert", config(classifier_pooling="max"), "classifier_pooling 'max' is not served"),
    "ModernBERT with odd heads": ("modernbert", config(num_attention_heads=32), "is odd"),
    "ModernBERT with a flag that is a text": ("modernbert", config(norm_bias="no"), "norm_bias must be true or false"),
}


@pytest.mark.parametrize("case", BY_FAMILY)
def test_what_only_a_family_has_is_refused_with_what_is_wrong(store: TensorStore, good: Good, tmp_path: Path, case: str) -> None:
    family, spoil, sentence = BY_FAMILY[case]
    assert sentence in refused(store, spoiled(good(family, Task.CLASSIFICATION), tmp_path, spoil))


_SCALARS = st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats(allow_nan=False) | st.text(max_size=8)
JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


@settings(max_examples=40, deadline=None)
@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_whatever_a_config_holds_it_is_imported_or_refused(
    good: Good, tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    """Nothing but a sentence comes of it: no traceback of ours, no panic of a library."""
    folder = tmp_path_factory.mktemp("any")
    original = good(family, Task.CLASSIFICATION)
    name = data.draw(st.sampled_from(sorted(orjson.loads((original / "config.json").read_bytes()))))
    model = spoiled(original, folder, config(**{name: data.draw(JSON)}))
    sentence = "imported as it is"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "find_spec", lambda _: None)
        try:
            import_folder(TensorStore(folder / "store"), model)
        except BadPackage as refusal:
            sentence = str(refusal)
    shutil.rmtree(folder)
    assert 10 < len(sentence) < 1000
