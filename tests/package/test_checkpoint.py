"""Checkpoint directories: what is missing, damaged, contradictory or not served is said in a sentence."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.package.checkpoint import Checkpoint, read_checkpoint
from flatshare.package.graphs.heads import Normalize, SentenceHead
from flatshare.package.purpose import Purpose
from flatshare.package.sentence import SentenceModules
from tests.checkpoints import CONFIG, MODULES, write_checkpoint

TRANSFORMER, POOLING, NORMALIZE = MODULES
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
MEAN = SentenceHead(("mean",), (Normalize(),))
FILES = {
    "config": "config.json",
    "modules": "modules.json",
    "pooling": "1_Pooling/config.json",
    "sentence": "sentence_bert_config.json",
    "tokenizer_config": "tokenizer_config.json",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, StoreLimits())


def put(folder: Path, file: str, value: Any) -> None:
    (folder / FILES[file]).write_bytes(value if isinstance(value, bytes) else orjson.dumps(value))


def config(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CONFIG.items() if key != name}


def test_a_whole_checkpoint_is_read(folder: Path) -> None:
    checkpoint = read(folder)
    assert (checkpoint.trunk.hidden, checkpoint.trunk.vocabulary, checkpoint.trunk.max_tokens) == (32, CONFIG["vocab_size"], 64)
    assert checkpoint.purpose == Purpose(Task.EMBEDDING, MEAN, sentence=SentenceModules(MEAN))
    assert checkpoint.max_tokens == 64


@pytest.mark.parametrize("missing", ["config.json", "1_Pooling/config.json"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(BadPackage, match=f"{missing} is missing"):
        read(folder)


def test_a_folder_in_place_of_a_file_is_as_good_as_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(BadPackage, match=r"config.json is missing"):
        read(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nan"])
def test_a_file_that_is_not_json_is_named(folder: Path, file: str, content: bytes) -> None:
    put(folder, file, content)
    if file == "tokenizer_config":  # read only if nothing states the longest text
        put(folder, "sentence", {})
    with pytest.raises(BadPackage, match=f"{FILES[file]} is not valid JSON"):
        read(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("value", [None, 1, "text", True])
def test_a_file_of_another_type_is_named(folder: Path, file: str, value: object) -> None:
    put(folder, file, value)
    with pytest.raises(BadPackage, match=rf"{FILES[file]} is not a (JSON object|list)"):
        read(folder)


def test_a_file_beyond_the_limit_is_not_read(folder: Path) -> None:
    with pytest.raises(BadPackage, match=r"modules.json has more than 10 bytes"):
        read_checkpoint(folder, StoreLimits(max_json_bytes=10))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], type[BadPackage], str]] = {
    "another family": (config(model_type="llama"), UnsupportedModel, "model_type is 'llama'"),
    "no family": (without("model_type"), UnsupportedModel, "model_type is None"),
    "relative positions": (config(position_embedding_type="relative_key"), UnsupportedModel, "position_embedding_type"),
    "decoder": (config(is_decoder=True), UnsupportedModel, "decoder"),
    "unknown activation": (config(hidden_act="swish"), UnsupportedModel, "hidden_act 'swish'"),
    "activation that is a list": (config(hidden_act=["gelu"]), UnsupportedModel, "hidden_act"),
    "activation that is an object": (config(hidden_act={}), UnsupportedModel, "hidden_act"),
    "heads do not divide": (config(num_attention_heads=3), BadPackage, "not a multiple"),
    "too many layers": (config(num_hidden_layers=2_000), BadPackage, "beyond any real model"),
    "epsilon of zero": (config(layer_norm_eps=0), BadPackage, "layer_norm_eps"),
    "epsilon that is text": (config(layer_norm_eps="1e-12"), BadPackage, "layer_norm_eps"),
    "epsilon that is a bool": (config(layer_norm_eps=True), BadPackage, "layer_norm_eps"),
}
SIZES = [name for name, value in CONFIG.items() if isinstance(value, int)]


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_cannot_be_served_is_refused_with_the_reason(folder: Path, case: str) -> None:
    value, error, sentence = BAD_CONFIGS[case]
    put(folder, "config", value)
    with pytest.raises(error, match=sentence):
        read(folder)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "32", True, [32], 2**40, 10**30])
def test_a_size_that_is_no_sane_integer_is_named(folder: Path, name: str, value: object) -> None:
    text = orjson.dumps(without(name))[:-1] + f',"{name}":'.encode()  # 10**30 is JSON, but not for orjson.dumps
    put(folder, "config", text + (b"%d" % value if type(value) is int else orjson.dumps(value)) + b"}")
    with pytest.raises(BadPackage, match=f"{name} must be an integer"):
        read(folder)


BAD_MODULES: dict[str, tuple[Any, type[BadPackage], str]] = {
    "no modules": ([], UnsupportedModel, "no Pooling"),
    "no pooling": ([TRANSFORMER], UnsupportedModel, "no Pooling"),
    "a dense layer without its files": ([TRANSFORMER, POOLING, DENSE], BadPackage, "2_Dense/config.json is missing"),
    "a layer between": (
        [TRANSFORMER, {"type": "sentence_transformers.models.LSTM", "path": "1_LSTM"}, POOLING],
        UnsupportedModel,
        "'LSTM'",
    ),
    "two poolings": ([TRANSFORMER, POOLING, POOLING], UnsupportedModel, "'Pooling' at place 2"),
    "normalised before pooling": ([TRANSFORMER, NORMALIZE, POOLING], UnsupportedModel, "'Normalize' at place 1"),
    "transformer in a folder that is not there": (
        [{**TRANSFORMER, "path": "0_Transformer"}, POOLING],
        BadPackage,
        "0_Transformer/config.json is missing",
    ),
    "a model of words alone": (
        [{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}],
        UnsupportedModel,
        "'StaticEmbedding'",
    ),
    "a module that is text": (["Transformer"], BadPackage, "each module needs"),
    "a module without type": ([{"path": ""}], BadPackage, "each module needs"),
    "a path that is a number": ([TRANSFORMER, {**POOLING, "path": 1}], BadPackage, "each module needs"),
    "a path upwards": ([TRANSFORMER, {**POOLING, "path": "../other"}], BadPackage, "leaves the checkpoint"),
    "an absolute path": ([TRANSFORMER, {**POOLING, "path": "/etc"}], BadPackage, "leaves the checkpoint"),
    "an endless path": ([TRANSFORMER, {**POOLING, "path": "a" * 5_000}], BadPackage, "longer than 255"),
    "a path with a NUL": ([TRANSFORMER, {**POOLING, "path": "a\0b"}], BadPackage, "is missing"),
}


@pytest.mark.parametrize("case", BAD_MODULES)
def test_modules_that_cannot_be_served_are_refused_with_the_reason(folder: Path, case: str) -> None:
    value, error, sentence = BAD_MODULES[case]
    put(folder, "modules", value)
    with pytest.raises(error, match=sentence):
        read(folder)


POOLINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "old, mean": ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean",)),
    "old, cls": ({"pooling_mode_cls_token": True}, ("cls",)),
    "old, max": ({"pooling_mode_max_tokens": True}, ("max",)),
    "old, square root": ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",)),
    "old, two in their order": ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
    "new, one": ({"pooling_mode": "mean", "word_embedding_dimension": 32}, ("mean",)),
    "new, cls": ({"pooling_mode": "cls"}, ("cls",)),
    "new, list": ({"pooling_mode": ["cls", "mean"]}, ("cls", "mean")),
    "nothing is the mean": ({}, ("mean",)),
    "old, all off, is the mean": ({"pooling_mode_mean_tokens": False}, ("mean",)),
    "old, weighted": ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
    "old, last": ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
    "new, square root": ({"pooling_mode": "mean_sqrt_len_tokens"}, ("mean_sqrt_len",)),
    "new, in its own order": ({"pooling_mode": ["lasttoken", "cls"]}, ("lasttoken", "cls")),
    "new wins over old": ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, ("max",)),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_pooling_configs_of_all_ages_are_understood(folder: Path, case: str) -> None:
    value, poolings = POOLINGS[case]
    put(folder, "pooling", value)
    head = read(folder).purpose.head
    assert isinstance(head, SentenceHead)
    assert head.poolings == poolings


@pytest.mark.parametrize(
    "value",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_median_tokens": True},
        {"pooling_mode": "median"},
        {"pooling_mode": ["mean", "median"]},
        {"pooling_mode": []},
        {"pooling_mode": 7},
        {"pooling_mode": [{}]},
    ],
)
def test_a_pooling_that_is_not_served_is_refused(folder: Path, value: dict[str, Any]) -> None:
    put(folder, "pooling", value)
    with pytest.raises(UnsupportedModel, match=r"pooling .* is not served: known are cls, max, mean, mean_sqrt_len"):
        read(folder)


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "nothing stated: the positions": ({}, {}, 64),
    "max_seq_length": ({"max_seq_length": 20}, {}, 20),
    "max_seq_length beyond the positions": ({"max_seq_length": 1_000}, {}, 64),
    "max_seq_length wins over the tokenizer": ({"max_seq_length": 20}, {"model_max_length": 10}, 20),
    "null is as good as nothing": ({"max_seq_length": None}, {"model_max_length": 10}, 10),
    "the tokenizer's": ({}, {"model_max_length": 10}, 10),
    "the tokenizer's beyond the positions": ({}, {"model_max_length": 512}, 64),
    "the tokenizer's 1e30": ({}, {"model_max_length": 1e30}, 64),
    "the tokenizer's nonsense": ({}, {"model_max_length": "many"}, 64),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_longest_text_is_what_the_sentence_config_the_tokenizer_or_the_positions_admit(folder: Path, case: str) -> None:
    sentence, tokenizer, expected = LIMITS[case]
    put(folder, "sentence", sentence)
    put(folder, "tokenizer_config", tokenizer)
    assert read(folder).max_tokens == expected


@pytest.mark.parametrize("value", [0, 1, -5, 2.5, "128", True, [128]])
def test_a_longest_text_that_is_no_number_of_tokens_is_refused(folder: Path, value: object) -> None:
    put(folder, "sentence", {"max_seq_length": value})
    with pytest.raises(BadPackage, match="max_seq_length must be an integer of at least 2"):
        read(folder)


def test_without_modules_mean_pooling_is_assumed_and_said(folder: Path) -> None:
    (folder / "modules.json").unlink()
    purpose = read(folder).purpose
    assert purpose.head == SentenceHead(("mean",), ())
    assert any("mean pooling" in note for note in purpose.notes)


def test_lower_casing_is_taken_from_the_sentence_config(folder: Path) -> None:
    put(folder, "sentence", {"do_lower_case": True})
    assert read(folder).purpose.sentence.is_lowercased
