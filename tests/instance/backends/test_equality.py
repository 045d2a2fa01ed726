"""Every family and task answers as transformers and sentence-transformers do; the run ends with the matrix of differences."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
import torch
import transformers

from flatshare.bench.tenants import base_checkpoint
from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported
from tests.families import FAMILIES, LONG, MAX_TOKENS, TEXTS, randomize, save_model, write_sentence_modules
from tests.instance.backends.conftest import Array, Matrix

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    from sentence_transformers import CrossEncoder, SentenceTransformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For models of this size, handing work to threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def loaded(store: TensorStore, folder: Path) -> MappedModel:
    return MappedBackend(concurrent_runs=1).load(imported(store, folder))


def embedded(result: InferResult) -> Array:
    vectors: Array = result.output("embedding").data
    return vectors


@pytest.mark.parametrize("family", FAMILIES)
def test_sentence_embeddings(store: TensorStore, tmp_path: Path, family: str, matrix: Matrix) -> None:
    folder = save_model(tmp_path / "model", family, Task.EMBEDDING)
    pooling = {"pooling_mode": ["mean", "cls"], "word_embedding_dimension": 32}
    write_sentence_modules(folder, ("Pooling", pooling), ("Normalize", {}))
    model, expected = loaded(store, folder), SentenceTransformer(str(folder), device="cpu")
    texts = ["", *TEXTS]
    result = model.run(text_call(*texts))
    assert result.parameters["truncated"] == (texts.index(LONG),)
    assert max(result.parameters["tokens"]) == MAX_TOKENS  # type: ignore[arg-type]  # a tuple of integers
    matrix(family, "embedding", "random", embedded(result), expected.encode(texts))
    matrix(family, "embedding", "random", embedded(model.run(text_call("order"))), expected.encode(["order"]))
    many = [*TEXTS] * 8
    matrix(family, "embedding", "random", embedded(model.run(text_call(*many))), expected.encode(many))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings(store: TensorStore, tmp_path: Path, pooling: str, matrix: Matrix) -> None:
    folder = save_model(tmp_path / "model", "roberta", Task.EMBEDDING)
    write_sentence_modules(folder, ("Pooling", {"pooling_mode": pooling, "word_embedding_dimension": 32}))
    expected = SentenceTransformer(str(folder), device="cpu").encode(["", *TEXTS])
    matrix("roberta", f"embedding, {pooling}", "random", embedded(loaded(store, folder).run(text_call("", *TEXTS))), expected)


class TestPromptsThatAreNotPooled:
    """`include_prompt: false`, as instruction-tuned encoders have it: a prompt is read, but the vector is made of what follows it."""

    PROMPTS: ClassVar = {"query": "help me ", "document": "", "long": LONG, "emoji": "🙂 "}

    def save(self, folder: Path, family: str, *poolings: str, normalize: bool = True, **settings: Any) -> Path:
        save_model(folder, family, Task.EMBEDDING)
        pooling = {"pooling_mode": [*poolings], "word_embedding_dimension": 32, "include_prompt": False}
        after: list[tuple[str, dict[str, Any]]] = [("Normalize", {})] if normalize else []
        return write_sentence_modules(folder, ("Pooling", pooling), *after, prompts=self.PROMPTS, **settings)

    @pytest.mark.parametrize("family", ["bert", "roberta", "camembert", "mpnet", "modernbert"])
    def test_as_sentence_transformers_counts_them(self, store: TensorStore, tmp_path: Path, family: str, matrix: Matrix) -> None:
        folder = self.save(tmp_path / "model", family, *POOLINGS, normalize=False, default_prompt_name="query")
        model, expected = loaded(store, folder), SentenceTransformer(str(folder), device="cpu")
        texts = ["", *TEXTS]
        for options in ({}, {"prompt_name": "document"}, {"prompt_name": "emoji"}, {"prompt_name": "long"}, {"prompt": "the order has"}):
            found = embedded(model.run(replace(text_call(*texts), parameters=options)))
            matrix(family, "embedding, prompt not pooled", "random", found, expected.encode(texts, **options))
        with_prompt = embedded(model.run(replace(text_call("help me order"), parameters={"prompt": ""})))
        assert np.abs(with_prompt - embedded(model.run(text_call("order")))).max() > 1e-2

    def test_of_a_tokenizer_that_keeps_the_end(self, store: TensorStore, tmp_path: Path, matrix: Matrix) -> None:
        folder = self.save(tmp_path / "model", "bert", *POOLINGS)
        keep_ends(folder)
        options = {"prompt_name": "query"}
        found = embedded(loaded(store, folder).run(replace(text_call("order", LONG), parameters=options)))
        expected = SentenceTransformer(str(folder), device="cpu").encode(["order", LONG], **options)
        matrix("bert", "embedding, prompt not pooled, end kept", "random", found, expected)

    def test_of_a_module_that_lowers(self, store: TensorStore, tmp_path: Path, matrix: Matrix) -> None:
        folder = self.save(tmp_path / "model", "roberta", "mean")
        (folder / "sentence_bert_config.json").write_bytes(orjson.dumps({"max_seq_length": 20, "do_lower_case": True}))
        options = {"prompt": "HELP ME "}
        found = embedded(loaded(store, folder).run(replace(text_call("ORDER", LONG), parameters=options)))
        expected = SentenceTransformer(str(folder), device="cpu").encode(["ORDER", LONG], **options)
        matrix("roberta", "embedding, prompt not pooled, lowered", "random", found, expected)

    def test_of_a_tokenizer_that_adds_nothing_so_that_nothing_may_be_left(self, store: TensorStore, tmp_path: Path, matrix: Matrix) -> None:
        poolings = [pooling for pooling in POOLINGS if pooling != "max"]
        folder = self.save(tmp_path / "model", "roberta", *poolings, normalize=False)
        path = folder / "tokenizer.json"
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "post_processor": None}))
        texts = ["", "order", LONG]
        found = embedded(loaded(store, folder).run(replace(text_call(*texts), parameters={"prompt_name": "query"})))
        expected = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name="query")
        matrix("roberta", "embedding, nothing left", "random", found, expected)
        assert not found[0, 32:].any()  # but the first token's vector, which is what sentence-transformers takes

    def test_the_largest_of_nothing_is_refused(self, store: TensorStore, tmp_path: Path) -> None:
        folder = self.save(tmp_path / "model", "roberta", "max")
        path = folder / "tokenizer.json"
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "post_processor": None}))
        with pytest.raises(BadInput, match="text 1 has no token beyond the prompt's"):
            loaded(store, folder).run(replace(text_call(LONG, ""), parameters={"prompt_name": "query"}))

    def test_token_ids_are_pooled_whole(self, store: TensorStore, tmp_path: Path, matrix: Matrix) -> None:
        folder = self.save(tmp_path / "model", "bert", "mean", default_prompt_name="query")
        ids = np.array([transformers.AutoTokenizer.from_pretrained(folder)("help me order")["input_ids"]], np.int64)
        found = embedded(loaded(store, folder).run(InferCall({"input_ids": Tensor.of("input_ids", ids)})))
        expected = SentenceTransformer(str(folder), device="cpu").encode(["help me order"], prompt="")
        matrix("bert", "embedding of token ids", "random", found, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_sequence_classification(store: TensorStore, tmp_path: Path, family: str, problem: str, matrix: Matrix) -> None:
    labels = {0: "refund"} if problem == "regression" else {0: "refund", 1: "été", 2: "other"}
    folder = save_model(tmp_path / "model", family, Task.CLASSIFICATION, problem_type=problem, id2label=labels, num_labels=len(labels))
    function = "none" if problem == "regression" else "default"
    pipeline = transformers.pipeline("text-classification", str(folder), top_k=None, device="cpu")
    texts = ["", *TEXTS]
    options = {"function_to_apply": function} if function == "none" else {}
    expected = [[(row["label"], row["score"]) for row in rows] for rows in pipeline(texts, truncation=True, **options)]
    model, name = loaded(store, folder), f"classification, {problem.removesuffix('_classification')}"
    for asked in (range(len(texts)), [1], [index % len(texts) for index in range(64)]):
        result, wanted = model.run(text_call(*(texts[index] for index in asked))), [expected[index] for index in asked]
        labels_found = [[label.decode() for label in row] for row in result.output("label").data]
        assert labels_found == [[label for label, _ in row] for row in wanted]
        scores = np.array([[score for _, score in row] for row in wanted], np.float32)
        matrix(family, name, "random", result.output("score").data, scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(store: TensorStore, tmp_path: Path, family: str, matrix: Matrix) -> None:
    labels = {0: "O", 1: "B-ORDER", 2: "I-ORDER"}
    folder = save_model(tmp_path / "model", family, Task.TOKEN_CLASSIFICATION, id2label=labels)
    pipeline = transformers.pipeline("token-classification", str(folder), ignore_labels=[], device="cpu")
    texts = ["", *TEXTS]
    model, tokens_of = loaded(store, folder), [pipeline(text) for text in texts]
    for asked in (range(len(texts)), [0], [1], [index % len(texts) for index in range(64)]):
        result = model.run(text_call(*(texts[index] for index in asked)))
        expected = [(place, token) for place, index in enumerate(asked) for token in tokens_of[index]]
        assert result.output("label").texts() == [token["entity"] for _, token in expected]
        assert result.output("piece").texts() == [token["word"] for _, token in expected]
        for name, wanted in (("begin", "start"), ("end", "end")):
            assert result.output(name).data.tolist() == [token[wanted] for _, token in expected]
        assert result.output("text_index").data.tolist() == [place for place, _ in expected]
        scores = np.array([token["score"] for _, token in expected], np.float32)
        if expected:
            matrix(family, "token classification", "random", result.output("score").data, scores)


def ranked(model: MappedModel, query: str, passages: Sequence[str]) -> InferResult:
    return model.run(InferCall({"query": text_tensor("query", [query]), "passages": text_tensor("passages", passages)}))


@pytest.mark.parametrize("family", FAMILIES)
def test_ranking(store: TensorStore, tmp_path: Path, family: str, matrix: Matrix) -> None:
    folder = save_model(tmp_path / "model", family, Task.RANKING)
    model, expected = loaded(store, folder), CrossEncoder(str(folder), device="cpu")
    passages = (["", *TEXTS] * 8)[:64]
    for query in ("where is my order", "", LONG):
        scores = expected.predict([(query, passage) for passage in passages])
        for count in (64, 1):
            matrix(family, "ranking", "random", ranked(model, query, passages[-count:]).output("score").data, scores[-count:])


class TestTheEndIsKept:
    """A tokenizer may say that a text that is too long loses its beginning."""

    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_of_a_text(self, store: TensorStore, tmp_path: Path, family: str, matrix: Matrix) -> None:
        folder = save_model(tmp_path / "model", family, Task.EMBEDDING)
        write_sentence_modules(folder, ("Pooling", {"pooling_mode": "mean", "word_embedding_dimension": 32}))
        keep_ends(folder)
        texts = ["short", LONG, "words " * 20_000 + "and the end of it"]
        result = loaded(store, folder).run(text_call(*texts))
        assert result.parameters["truncated"] == (1, 2)
        expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
        matrix(family, "embedding, end kept", "random", embedded(result), expected)

    def test_of_a_pair(self, store: TensorStore, tmp_path: Path, matrix: Matrix) -> None:
        folder = save_model(tmp_path / "model", "bert", Task.RANKING)
        keep_ends(folder)
        passages = ["", *TEXTS]
        scores = CrossEncoder(str(folder), device="cpu").predict([(LONG, passage) for passage in passages])
        result = ranked(loaded(store, folder), LONG, passages)
        matrix("bert", "ranking, end kept", "random", result.output("score").data, scores)

    def test_of_labelled_words(self, store: TensorStore, tmp_path: Path) -> None:
        folder = save_model(tmp_path / "model", "bert", Task.TOKEN_CLASSIFICATION, id2label={0: "O", 1: "B-ORDER"})
        keep_ends(folder)
        text = "words " * 20_000 + "order"
        result = loaded(store, folder).run(text_call(text))
        pieces = zip(result.output("begin").data, result.output("end").data, strict=True)
        *_, last = [text[begin:end] for begin, end in pieces]
        assert last == "order"


def keep_ends(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "truncation_side": "left"}))


class TestRealWeights:
    """all-MiniLM-L6-v2, whose heads for other tasks are random: nobody ships trained ones in a package."""

    def test_embedding(self, store: TensorStore, matrix: Matrix) -> None:
        expected = SentenceTransformer(str(base_checkpoint()), device="cpu")
        expected.max_seq_length = 256  # what its sentence_bert_config.json says; its tokenizer.json says 128
        texts = ["", *TEXTS] * 7
        matrix(
            "bert",
            "embedding",
            "all-MiniLM-L6-v2",
            embedded(loaded(store, base_checkpoint()).run(text_call(*texts))),
            expected.encode(texts),
        )

    @pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING])
    def test_heads(self, store: TensorStore, tmp_path: Path, task: Task, matrix: Matrix) -> None:
        kind = "TokenClassification" if task is Task.TOKEN_CLASSIFICATION else "SequenceClassification"
        labels = 1 if task is Task.RANKING else 5
        model = getattr(transformers, f"BertFor{kind}").from_pretrained(base_checkpoint(), num_labels=labels)
        randomize(model.classifier, 1)
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((base_checkpoint() / name).read_bytes())
        ours = loaded(store, folder)
        if task is Task.RANKING:
            passages = ["", *TEXTS]
            expected = CrossEncoder(str(folder), device="cpu").predict([("where is my order", passage) for passage in passages])
            actual = ranked(ours, "where is my order", passages).output("score").data
        else:
            expected = _logits(folder, TEXTS[2])
            actual = ours.run(text_call(TEXTS[2])).output("logits").data
        matrix("bert", str(task).replace("-", " "), "all-MiniLM-L6-v2", actual, expected)


def _logits(folder: Path, text: str) -> Array:
    """transformers' own; of tokens without the special ones."""
    kind = orjson.loads((folder / "config.json").read_bytes())["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits: Array = model(**tokenizer(text, return_tensors="pt")).logits.numpy()
    return logits[0, 1:-1] if logits.ndim == 3 else logits
