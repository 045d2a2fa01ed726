"""Labels and ranks: what a caller may ask for, and what it is told when it asks wrongly."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.instance.backends.encoder import longest_first
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.instance.backends.tasks.scores import scores
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported, tokenizer_json
from tests.families import LONG, TEXTS, save_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import CrossEncoder

pytestmark = pytest.mark.filterwarnings("ignore")
Texts = Mapping[str, list[str]]


def load(folder: Path) -> MappedModel:
    return MappedBackend(concurrent_runs=1).load(imported(TensorStore(folder.parent / "store"), folder))


def call(texts: Texts, **parameters: Any) -> InferCall:
    return InferCall({name: text_tensor(name, items) for name, items in texts.items()}, parameters)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> MappedModel:
    return load(save_model(tmp_path_factory.mktemp("classifier") / "model", "bert", Task.CLASSIFICATION))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> MappedModel:
    return load(save_model(tmp_path_factory.mktemp("ranker") / "model", "bert", Task.RANKING))


def test_the_best_label_comes_first_and_a_caller_may_ask_for_so_many(classifier: MappedModel) -> None:
    every = classifier.run(text_call(*TEXTS))
    best = classifier.run(call({"text": [*TEXTS]}, top_k=1))
    assert every.output("label").shape == (len(TEXTS), 3)
    assert (np.diff(every.output("score").data) <= 0).all()
    np.testing.assert_allclose(every.output("score").data.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(best.output("label").data, every.output("label").data[:, :1])


def test_a_caller_may_ask_for_another_activation(classifier: MappedModel) -> None:
    result = classifier.run(call({"text": ["order"]}, activation="identity"))
    np.testing.assert_array_equal(result.output("score").data[0], -np.sort(-result.output("logits").data[0]))


def test_pairs_of_texts_are_classified_as_transformers_does(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "bert", Task.CLASSIFICATION)
    firsts, seconds = [*TEXTS, LONG], ["help me", *TEXTS]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = [tokenizer(a, b, truncation=True, return_tensors="pt") for a, b in zip(firsts, seconds, strict=True)]
    expected = [model(**features).logits.detach().numpy()[0] for features in inputs]
    result = load(folder).run(call({"text": firsts, "text_pair": seconds}))
    np.testing.assert_allclose(result.output("logits").data, np.stack(expected), rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("style", ["today's", "older", "oldest"])
@pytest.mark.parametrize(("kind", "labels"), [(torch.nn.Sigmoid, 1), (torch.nn.Identity, 1), (torch.nn.Identity, 3)])
def test_a_cross_encoder_scores_with_the_activation_that_it_states(tmp_path: Path, kind: type[Any], labels: int, style: str) -> None:
    """sentence-transformers has written it to three places over time."""
    folder = save_model(tmp_path / "model", "bert", Task.RANKING, num_labels=labels)
    if style == "today's":
        CrossEncoder(str(folder), device="cpu", activation_fn=kind()).save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    else:
        path = f"{kind.__module__}.{kind.__name__}"
        stated = {"sentence_transformers": {"activation_fn": path}} if style == "older" else {"sbert_ce_default_activation_function": path}
        config = orjson.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_bytes(orjson.dumps({**config, **stated}))
    expected = CrossEncoder(str(folder), device="cpu").predict([("order", text) for text in TEXTS])
    model = load(folder)
    if labels == 1:
        found = model.run(call({"query": ["order"], "passages": [*TEXTS]})).output("score").data
    else:
        result = model.run(call({"text": ["order"] * len(TEXTS), "text_pair": [*TEXTS]}))
        expected, found = -np.sort(-expected, axis=1), result.output("score").data
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_regression_with_one_label_is_no_ranker(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "bert", Task.CLASSIFICATION, num_labels=1, problem_type="regression")
    result = load(folder).run(text_call("order"))
    np.testing.assert_array_equal(result.output("score").data, result.output("logits").data)


def test_token_classification_of_an_empty_text_is_an_empty_answer(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model", "bert", Task.TOKEN_CLASSIFICATION))
    assert model.run(text_call("")).output("label").shape == (0,)
    result = model.run(text_call("", "order", ""))
    assert set(result.output("text_index").data) == {1}
    assert result.parameters["tokens"][0] == 2  # type: ignore[index]  # a tuple


def test_token_ids_are_labelled_one_by_one_without_characters(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model", "bert", Task.TOKEN_CLASSIFICATION))
    ids = Tensor.of("input_ids", np.array([[2, 7, 8, 3]]))
    result = model.run(InferCall({"input_ids": ids}))
    assert [tensor.name for tensor in result.outputs] == ["label", "score", "piece", "text_index", "logits"]
    assert result.output("label").shape == (4,)


WRONG: list[tuple[str, InferCall, str]] = [
    ("classifier", call({}), "no text"),
    ("classifier", call({"text": ["a"], "text_pair": ["b", "c"]}), "1 texts and 2 to pair them with"),
    ("classifier", call({"text": ["a"]}, top_k=0), "'top_k' must be an integer from 1 to 3"),
    ("classifier", call({"text": ["a"]}, top_k=4), "'top_k' must be an integer from 1 to 3"),
    ("classifier", call({"text": ["a"]}, top_k="all"), "'top_k' must be an integer"),
    ("classifier", call({"text": ["a"]}, activation="relu"), "must be one of softmax, sigmoid, identity, not 'relu'"),
    ("classifier", call({"text": ["a"]}, dimensions=3), "no parameter 'dimensions': it takes activation, top_k"),
    ("ranker", call({"query": ["a"]}), "a ranker takes 'query', one text, and 'passages'"),
    ("ranker", call({"passages": ["a"]}), "a ranker takes 'query', one text, and 'passages'"),
    ("ranker", call({"query": ["a", "b"], "passages": ["a"]}), "2 queries in one call"),
    ("ranker", call({"query": ["a"], "passages": []}), "no text"),
    ("ranker", call({"query": ["a"], "passages": ["b"] * 4097}), "4097 texts in one call"),
    ("ranker", call({"query": ["a"], "passages": ["b"]}, top_k=1), "no parameter 'top_k': it takes activation"),
]


@pytest.mark.parametrize(("model", "wrong", "sentence"), WRONG)
def test_a_call_that_cannot_be_answered_is_refused(model: str, wrong: InferCall, sentence: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(BadInput, match=sentence):
        request.getfixturevalue(model).run(wrong)


PARAMETERS_OF_PROTOCOLS = {"priority": 1, "timeout": 1000, "sequence_id": 3}


def test_parameters_that_protocols_send_whatever_the_model_are_let_pass(ranker: MappedModel) -> None:
    ranker.run(call({"query": ["a"], "passages": ["b"]}, **PARAMETERS_OF_PROTOCOLS))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(4, 50))
def test_pairs_are_cut_as_the_tokenizers_library_cuts_them(first: int, second: int, most: int) -> None:
    """`order` is one token."""
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.enable_truncation(most, strategy="longest_first")
    encoding = tokenizer.encode("order " * first, "order " * second)
    room = most - tokenizer.num_special_tokens_to_add(is_pair=True)
    left, right = longest_first(first, second, room)
    types = np.array(encoding.type_ids)
    assert ((types == 0).sum(), (types == 1).sum()) == (left + 2, right + 1)


LOGITS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8).map(lambda row: np.array([row], np.float32))


@given(LOGITS)
def test_scores_are_probabilities_however_large_the_logits(logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    for activation in ("softmax", "sigmoid"):
        found = scores(logits, activation)
        assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(scores(logits, "softmax").sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(scores(logits, "sigmoid"), torch.sigmoid(torch.from_numpy(logits)).numpy(), rtol=0, atol=1e-6)
