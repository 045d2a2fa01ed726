"""The mapped engine answers what transformers would, with the weights where they lie on the disk."""

import gc
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from flatshare.bench.reference import ReferenceEncoder
from flatshare.bench.tenants import base_checkpoint, text_of
from flatshare.core.errors import BadInput
from flatshare.instance.backends.mapped import MappedBackend, MappedModel, equal_length_runs
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import VOCABULARY, WORDS, imported, tokenizer_json, write_checkpoint

LONG = " ".join(WORDS[:5] * 60)
TEXTS = ("", "order", "🙂", "the order has not arrived yet", "unwanted helps, please!", LONG, "日本語 的", "\x00 \t\n")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of sentence encoder, as the checkpoint describes it."""

    hidden_act: str = "gelu"
    poolings: tuple[str, ...] = ("mean",)
    is_normalized: bool = True
    has_modules: bool = True
    layers: int = 2

    def __str__(self) -> str:
        return f"{self.hidden_act}-{'+'.join(self.poolings)}{'-normalized' * self.is_normalized}{'-bare' * (not self.has_modules)}"


ARCHITECTURES = (
    Architecture(),
    Architecture(hidden_act="gelu_new"),
    Architecture(hidden_act="relu", is_normalized=False),
    Architecture(poolings=("cls",)),
    Architecture(poolings=("max",), is_normalized=False),
    Architecture(poolings=("mean_sqrt_len",), is_normalized=False),
    Architecture(poolings=("cls", "mean")),
    Architecture(poolings=("cls", "max", "mean", "mean_sqrt_len"), is_normalized=False, layers=1),
    Architecture(is_normalized=False, has_modules=False),
)


def save(folder: Path, kind: Architecture, *, seed: int = 0) -> Path:
    """What save_pretrained() writes, and sentence-transformers' files beside it."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=kind.layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_act=kind.hidden_act,
        initializer_range=0.4,
    )
    model = BertModel(config)
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    if kind.has_modules:
        modules = ["Transformer", "Pooling", *["Normalize"] * kind.is_normalized]
        paths = ("", "1_Pooling", "2_Normalize")
        listed = [{"type": f"sentence_transformers.models.{m}", "path": p} for m, p in zip(modules, paths, strict=False)]
        (folder / "modules.json").write_bytes(orjson.dumps(listed))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"pooling_mode": list(kind.poolings)}))
    return folder


class Expected:
    """transformers' own BertModel and tokenizer, then pooling and normalising in torch."""

    def __init__(self, folder: Path, kind: Architecture, *, max_tokens: int) -> None:
        self._model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
        self._kind = kind
        self._max_tokens = max_tokens

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
        return ids

    def embed(self, texts: tuple[str, ...]) -> NDArray[np.float32]:
        rows = [self._one(text) for text in texts]
        return np.stack(rows)

    def _one(self, text: str) -> NDArray[np.float32]:
        with torch.no_grad():
            last = self._model(torch.tensor([self.ids(text)])).last_hidden_state[0]
        pooled = {"cls": last[0], "max": last.max(0).values, "mean": last.mean(0), "mean_sqrt_len": last.sum(0) / len(last) ** 0.5}
        vector = torch.cat([pooled[pooling] for pooling in self._kind.poolings])
        if self._kind.is_normalized:
            vector = torch.nn.functional.normalize(vector, dim=0)
        result: NDArray[np.float32] = vector.numpy()
        return result


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


@pytest.fixture
def backend() -> MappedBackend:
    return MappedBackend(concurrent_runs=2)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A result, as the tests read it."""

    vectors: NDArray[np.float32]
    tokens: tuple[int, ...]
    truncated: tuple[int, ...]


def run(model: MappedModel, *texts: str) -> Embeddings:
    result = model.run(text_call(*texts))
    return Embeddings(result.output("embedding").data, result.parameters["tokens"], result.parameters["truncated"])  # type: ignore[arg-type]  # tuples of integers


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    scale = max(1.0, float(np.abs(expected).max()))  # 1e-5 of unit vectors; sums over 64 tokens are larger
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ARCHITECTURES, ids=str)
def test_a_random_bert_answers_as_transformers_does(store: TensorStore, backend: MappedBackend, tmp_path: Path, kind: Architecture) -> None:
    folder = save(tmp_path / "model", kind)
    model = backend.load(imported(store, folder))
    expected = Expected(folder, kind, max_tokens=64)
    result = run(model, *TEXTS)
    assert_close(result.vectors, expected.embed(TEXTS))
    assert result.tokens == tuple(len(expected.ids(text)) for text in TEXTS)
    assert result.truncated == (TEXTS.index(LONG),)
    assert result.vectors.shape == (len(TEXTS), 32 * len(kind.poolings))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> MappedModel:
    store = TensorStore(tmp_path_factory.mktemp("minilm") / "store")
    return MappedBackend(concurrent_runs=2).load(imported(store, base_checkpoint()))


@pytest.fixture(scope="module")
def expected() -> Expected:
    return Expected(base_checkpoint(), Architecture(layers=6), max_tokens=256)


class TestMiniLM:
    """The real all-MiniLM-L6-v2."""

    @pytest.mark.parametrize("text", [*TEXTS, text_of(256, 1), text_of(255, 2)], ids=lambda text: ascii(text[:12]))
    def test_it_answers_as_transformers_does(self, minilm: MappedModel, expected: Expected, text: str) -> None:
        result = run(minilm, text)
        assert_close(result.vectors, expected.embed((text,)))
        assert result.tokens == (len(expected.ids(text)),)

    def test_a_text_beyond_the_limit_is_cut_as_transformers_cuts_it_and_reported(self, minilm: MappedModel, expected: Expected) -> None:
        texts = (text_of(257, 1), text_of(256, 1), text_of(900, 3))
        result = run(minilm, *texts)
        assert result.truncated == (0, 2)
        assert result.tokens == (256, 256, 256)
        assert_close(result.vectors, expected.embed(texts))

    def test_many_texts_in_a_call_are_answered_in_order_as_if_one_by_one(self, minilm: MappedModel) -> None:
        lengths = np.random.default_rng(0).integers(3, 40, 64)
        texts = tuple(text_of(int(length), seed) for seed, length in enumerate(lengths))
        together = run(minilm, *texts)
        assert together.tokens == tuple(int(length) for length in lengths)
        assert_close(together.vectors, np.concatenate([run(minilm, text).vectors for text in texts]))

    def test_the_plain_numpy_reference_agrees(self, minilm: MappedModel) -> None:
        reference = ReferenceEncoder(base_checkpoint())
        for text in ("order", "the order has not arrived yet", text_of(60, 5)):
            assert_close(run(minilm, text).vectors[0], reference.embed(text))


def two_models(store: TensorStore, backend: MappedBackend, folder: Path) -> tuple[MappedModel, MappedModel]:
    first, second = (backend.load(imported(store, write_checkpoint(folder / str(seed), seed=seed))) for seed in (1, 2))
    return first, second


def test_models_that_run_at_once_never_mix(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    models = two_models(store, backend, tmp_path)
    texts = [(model, text) for text in TEXTS * 12 for model in models]
    alone = {(model, text): run(model, text).vectors for model, text in texts}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda pair: run(pair[0], pair[1], pair[1]).vectors, texts))
    for pair, answer in zip(texts, answers, strict=True):
        assert_close(answer, np.repeat(alone[pair], 2, axis=0))
    assert np.abs(alone[texts[0]] - alone[texts[1]]).max() > 1e-2


def test_the_numpy_reference_agrees_on_random_models(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", seed=7)
    model, reference = backend.load(imported(store, folder)), ReferenceEncoder(folder)
    for text in ("order", "the order has not arrived yet", "unwanted helps, please!"):
        assert_close(run(model, text).vectors[0], reference.embed(text))


def test_lower_casing_happens_before_the_tokenizer(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", tokenizer=tokenizer_json(lowercase=False))
    cased = run(backend.load(imported(store, folder)), "The ORDER", "the order").vectors
    assert np.abs(cased[0] - cased[1]).max() > 1e-2
    lowered_folder = write_checkpoint(tmp_path / "b", tokenizer=tokenizer_json(lowercase=False))
    (lowered_folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    lowered = run(backend.load(imported(store, lowered_folder)), "The ORDER", "the order").vectors
    assert_close(lowered, np.stack([cased[1], cased[1]]))


def test_a_text_without_any_token_is_refused(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    model = backend.load(imported(store, write_checkpoint(tmp_path / "a", tokenizer=tokenizer_json(special=False))))
    assert run(model, "order").tokens == (1,)
    with pytest.raises(BadInput, match="no tokens"):
        run(model, "order", "")


def test_bindings_are_used_again(store: TensorStore, backend: MappedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = two_models(store, backend, tmp_path)
    made: list[object] = []
    bind: Callable[..., Any] = type(model._architecture).bind

    def counted(*args: object) -> object:
        made.append(bind(*args))
        return made[-1]

    monkeypatch.setattr(type(model._architecture), "bind", counted)
    for _ in range(20):
        run(model, *TEXTS)
    assert len(made) == 1


def maps_of(store: TensorStore) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {match[0] for line in lines if str(store.packs_dir) in line and (match := re.search(r"[0-9a-f]{32}\.pack", line))}


def test_nothing_of_a_model_that_was_dropped_remains(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    gc.collect()  # maps of earlier tests are not this one's
    first, second = two_models(store, backend, tmp_path)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    run(first, "order")
    run(second, "order")
    assert len(maps_of(store)) == 2
    assert backend.statistics() == {"maps": 2, "sessions": 1, "tokenizers": 1}
    del first
    assert len(maps_of(store)) == 1
    assert backend.statistics() == {"maps": 1, "sessions": 1, "tokenizers": 1}
    del second
    backend.shrink()
    assert maps_of(store) == set()
    assert backend.statistics() == {"maps": 0, "sessions": 0, "tokenizers": 0}
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_model_still_runs_after_its_pack_was_deleted(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    model, _ = two_models(store, backend, tmp_path)
    before = run(model, "order").vectors
    for pack in store.packs_dir.iterdir():
        pack.unlink()
    np.testing.assert_array_equal(run(model, "order").vectors, before)


def test_the_footprint_counts_what_models_share_once(store: TensorStore, backend: MappedBackend, tmp_path: Path) -> None:
    first, second = (imported(store, write_checkpoint(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    assert backend.footprint(first).shared == backend.footprint(second).shared
    assert len(backend.footprint(first).shared) == 3


LENGTHS = st.lists(st.integers(1, 600), max_size=80)


@given(LENGTHS, st.integers(1, 600))
def test_runs_are_a_partition_into_equal_lengths_within_the_budget(lengths: list[int], tokens_per_run: int) -> None:
    runs = list(equal_length_runs(lengths, tokens_per_run))
    assert sorted(index for run in runs for index in run) == list(range(len(lengths)))
    for indices in runs:
        assert len({lengths[index] for index in indices}) == 1
        assert len(indices) == 1 or sum(lengths[index] for index in indices) <= tokens_per_run


@given(LENGTHS)
def test_no_two_runs_of_a_length_would_fit_in_one(lengths: list[int]) -> None:
    runs = list(equal_length_runs(lengths, 512))
    for length in set(lengths):
        counts = sorted(len(indices) for indices in runs if lengths[indices[0]] == length)
        assert len(counts) == -(-sum(counts) // max(1, 512 // length))
