"""Sentence embedding as sentence-transformers does it: prompts, Dense layers, dimensions, token ids in place of texts."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.torch
import torch

from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.store.tensors import TensorStore
from tests.checkpoints import imported
from tests.families import TEXTS, fast_tokenizer, save_model, write_sentence_modules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN = ("Pooling", {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32})
NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})
PROMPTS = {"query": "help me ", "document": ""}


def save(folder: Path, *modules: tuple[str, dict[str, Any]], **settings: Any) -> Path:
    return write_sentence_modules(save_model(folder, "bert", Task.EMBEDDING), MEAN, *modules, **settings)


def load(folder: Path) -> MappedModel:
    return MappedBackend(concurrent_runs=1).load(imported(TensorStore(folder.parent / f"store of {folder.name}"), folder))


def embed(model: MappedModel, *texts: str, **parameters: Any) -> Any:
    return model.run(InferCall({"text": text_tensor("text", texts)}, parameters)).output("embedding").data


def reference(folder: Path) -> Any:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> MappedModel:
    return load(save(tmp_path_factory.mktemp("plain") / "model", NORMALIZE, prompts=PROMPTS))


class TestPrompts:
    def test_a_prompt_is_put_before_the_text(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", NORMALIZE, prompts=PROMPTS)
        model, expected = load(folder), reference(folder)
        for options in ({}, {"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "the "}):
            np.testing.assert_allclose(embed(model, *TEXTS, **options), expected.encode([*TEXTS], **options), rtol=0, atol=1e-5)
        assert np.abs(embed(model, "order") - embed(model, "order", prompt_name="query")).max() > 1e-3

    def test_the_default_prompt_is_put_there_if_nobody_says_otherwise(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", prompts=PROMPTS, default_prompt_name="query")
        model = load(folder)
        np.testing.assert_allclose(embed(model, "order"), reference(folder).encode(["order"]), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(embed(model, "order"), embed(model, "order", prompt_name="query"))
        np.testing.assert_array_equal(embed(model, "order", prompt=""), embed(model, "order", prompt_name="document"))

    @pytest.mark.parametrize(
        ("parameters", "sentence"),
        [
            ({"prompt_name": "nobody"}, "no prompt 'nobody': it has query, document"),
            ({"prompt_name": 1}, "'prompt_name' must be a text"),
            ({"prompt": True}, "'prompt' must be a text"),
            ({"prompt": "a", "prompt_name": "query"}, "send one of them"),
            ({"promt": "a"}, "no parameter 'promt': it takes prompt_name, prompt, dimensions"),
            ({"dimensions": 0}, "'dimensions' must be an integer from 1 to 32"),
            ({"dimensions": 33}, "'dimensions' must be an integer from 1 to 32"),
            ({"dimensions": 8.0}, "'dimensions' must be an integer from 1 to 32"),
        ],
    )
    def test_a_parameter_that_means_nothing_is_refused(self, plain: MappedModel, parameters: dict[str, Any], sentence: str) -> None:
        with pytest.raises(BadInput, match=sentence):
            embed(plain, "order", **parameters)


class TestDimensions:
    """Matryoshka: the first numbers of a vector are a vector."""

    def test_a_caller_may_ask_for_fewer_and_gets_them_normalised(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", NORMALIZE)
        expected = reference(folder).encode([*TEXTS], truncate_dim=8, normalize_embeddings=True)
        found = embed(load(folder), *TEXTS, dimensions=8)
        assert found.shape == (len(TEXTS), 8)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def test_a_model_may_state_fewer_and_they_stay_as_they_are_without_normalize(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", truncate_dim=8)
        model = load(folder)
        assert model.signature.outputs[0].shape == (-1, 8)
        np.testing.assert_allclose(embed(model, *TEXTS), reference(folder).encode([*TEXTS]), rtol=0, atol=1e-5)


class TestDense:
    @pytest.mark.parametrize("name", ["linear.Identity", "activation.Tanh", "activation.ReLU", "activation.GELU", "activation.Sigmoid"])
    def test_a_dense_layer_follows_the_pooling(self, tmp_path: Path, name: str) -> None:
        config = {
            "in_features": 32,
            "out_features": 24,
            "bias": name != "activation.GELU",
            "activation_function": f"torch.nn.modules.{name}",
        }
        folder = save(tmp_path / "model", ("Dense", config), NORMALIZE)
        write_dense(folder / "2_Dense", config)
        found = embed(load(folder), *TEXTS)
        assert found.shape == (len(TEXTS), 24)
        np.testing.assert_allclose(found, reference(folder).encode([*TEXTS]), rtol=0, atol=1e-5)

    def test_layers_in_a_row_with_a_residual_and_a_norm(self, tmp_path: Path) -> None:
        first = {"in_features": 32, "out_features": 16, "bias": True, "use_residual": True}
        second = {"in_features": 16, "out_features": 16, "bias": True, "use_residual": True}
        last = ("LayerNorm", {"dimension": 16}), ("Dropout", {"dropout": 0.1})
        folder = save(tmp_path / "model", ("Dense", first), ("Dense", second), *last)
        write_dense(folder / "2_Dense", first)
        write_dense(folder / "3_Dense", second)
        safetensors.torch.save_file({"norm.weight": torch.rand(16), "norm.bias": torch.rand(16)}, folder / "4_LayerNorm/model.safetensors")
        np.testing.assert_allclose(embed(load(folder), *TEXTS), reference(folder).encode([*TEXTS]), rtol=0, atol=1e-5)


def write_dense(folder: Path, config: dict[str, Any]) -> None:
    inputs, outputs = config["in_features"], config["out_features"]
    torch.manual_seed(inputs)
    tensors = {"linear.weight": torch.randn(outputs, inputs)}
    if config["bias"]:
        tensors["linear.bias"] = torch.randn(outputs)
    if config.get("use_residual") and inputs != outputs:
        tensors["residual.weight"] = torch.randn(outputs, inputs)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def ids_call(*rows: list[int], **others: list[list[int]]) -> InferCall:
    tensors = {"input_ids": [*rows], **others}
    return InferCall({name: Tensor.of(name, np.array(value, np.int64)) for name, value in tensors.items()})


class TestTokenIds:
    def test_ids_answer_as_their_text(self, plain: MappedModel) -> None:
        ids = fast_tokenizer("word_piece")("the order has not arrived")["input_ids"]
        found = plain.run(ids_call(ids, ids))
        expected = embed(plain, "the order has not arrived")
        np.testing.assert_allclose(found.output("embedding").data, np.repeat(expected, 2, axis=0), rtol=0, atol=1e-6)
        assert found.parameters["tokens"] == (len(ids), len(ids))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_what_the_mask_says_is_padding_is_not_run(self, plain: MappedModel, side: str) -> None:
        tokenizer = fast_tokenizer("word_piece")
        texts = ["order", "the order has not arrived yet"]
        padded = tokenizer(texts, padding=True, padding_side=side)
        found = plain.run(ids_call(*padded["input_ids"], attention_mask=padded["attention_mask"]))
        np.testing.assert_allclose(found.output("embedding").data, embed(plain, *texts), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("call", "sentence"),
        [
            (ids_call([2, 99_999, 3]), "a token outside of 0 to"),
            (ids_call([2, -1, 3]), "a token outside of 0 to"),
            (ids_call([2] * 49), "has 49 tokens: this model takes 1 to 48"),
            (ids_call([]), "has 0 tokens"),
            (ids_call([2, 3], attention_mask=[[1, 1, 1]]), r"'attention_mask' has shape \[1, 3\], 'input_ids' \[1, 2\]"),
            (ids_call([2, 3], attention_mask=[[0, 0]]), "all 0"),
            (ids_call([2, 5, 3], attention_mask=[[1, 0, 1]]), "one stretch of 1"),
            (ids_call([2, 5, 3], attention_mask=[[1, 7, 1]]), "one stretch of 1"),
            (ids_call([2, 3], token_type_ids=[[0, 5]]), "may hold 0 and 1"),
            (ids_call(*[[2, 3]] * 4097), "4097 texts in one call"),
            (InferCall({}), "no text: send texts as 'text', or token ids as 'input_ids'"),
            (InferCall({**ids_call([2, 3]).inputs, "text": text_tensor("text", ["a"])}), "send texts or token ids"),
            (InferCall({"text": text_tensor("text", [])}), "no text"),
            (InferCall({"text": text_tensor("text", ["a"] * 4097)}), "4097 texts in one call"),
        ],
    )
    def test_ids_and_texts_that_cannot_be_run_are_refused(self, plain: MappedModel, call: InferCall, sentence: str) -> None:
        with pytest.raises(BadInput, match=sentence):
            plain.run(call)


def test_a_transformer_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", NORMALIZE)
    expected = embed(load(folder), *TEXTS)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    modules = orjson.loads((folder / "modules.json").read_bytes())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_bytes(orjson.dumps(modules))
    np.testing.assert_array_equal(embed(load(folder.rename(tmp_path / "moved")), *TEXTS), expected)
