"""What is written equals what transformers writes, token for token; alone, in company, and after a change of company."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.instance.backends.generate.vocabulary import Vocabulary, split_typed
from flatshare.instance.backends.generate.writing import rest_of
from tests.instance.backends.generate.conftest import Load, ask, texts_of
from tests.writers import END, beams, byte_tokenizer, greedy, llama, mistral, qwen, stretched, t5, word_tokenizer

PROMPTS = (
    "the order",
    "help me to pay you!",
    "refund",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z, the refund",
    "to the order " * 30,
)
MODELS: dict[str, Callable[..., Any]] = {
    "T5 1.1": t5,
    "T5 1.0": lambda seed: t5(seed, is_gated=False, is_tied=True),
    "Llama": llama,
    "Llama, tied": lambda seed: llama(seed, is_tied=True),
    "Qwen2": qwen,
    "Mistral with a window": lambda seed: mistral(seed, window=9),
    "Qwen2 with a window in its second layer": lambda seed: qwen(seed, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "linear positions": lambda seed: stretched(seed, rope_type="linear", factor=4.0),
    "dynamic positions": lambda seed: stretched(seed, rope_type="dynamic", factor=2.0),
    "Llama 3's positions": lambda seed: stretched(
        seed, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "yarn": lambda seed: stretched(seed, rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
}


def expected(model: Any, text: str, tokens: int, **more: Any) -> str:
    tokenizer = tokenizer_of(model)
    return str(tokenizer.decode(greedy(model, tokenizer.encode(text).ids, tokens, **more), skip_special_tokens=True))


def tokenizer_of(model: Any) -> Any:
    return word_tokenizer() if hasattr(model, "encoder") else byte_tokenizer()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_texts_equal_those_of_transformers(load: Load, kind: str, seed: int) -> None:
    model = MODELS[kind](seed)
    loaded = load(model)
    for prompt in PROMPTS:
        assert texts_of(ask(loaded, prompt, max_tokens=24)) == [expected(model, prompt, 24)]


@pytest.mark.parametrize("kind", ["T5 1.1", "Llama"])
def test_texts_that_are_written_together_equal_those_written_alone(load: Load, backend: GenerateBackend, kind: str) -> None:
    model = MODELS[kind](3)
    loaded = load(model)
    alone = [expected(model, prompt, 40) for prompt in PROMPTS]
    with ThreadPoolExecutor(10) as callers:
        together = list(callers.map(lambda prompt: texts_of(ask(loaded, prompt, max_tokens=40))[0], PROMPTS * 2))
    assert together == alone * 2
    done = backend.statistics()
    assert done["generation_rows_stepped"] > 1.3 * done["generation_steps"], "they did not share steps"
    assert texts_of(ask(loaded, *PROMPTS, max_tokens=40)) == alone


@pytest.mark.parametrize("kind", ["T5 1.1", "Llama"])
def test_beams_equal_those_of_transformers(load: Load, kind: str) -> None:
    model = MODELS[kind](5)
    loaded, tokenizer = load(model), tokenizer_of(model)
    for prompt in PROMPTS[:3]:
        for penalty in (1.0, 0.3):
            found = beams(model, tokenizer.encode(prompt).ids, 12, num_beams=4, count=3, length_penalty=penalty)
            wanted = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
            assert texts_of(ask(loaded, prompt, max_tokens=12, beams=4, n=3, length_penalty=penalty)) == wanted


@pytest.mark.parametrize("kind", ["T5 1.1", "Llama"])
def test_a_repetition_penalty_counts_as_in_transformers(load: Load, kind: str) -> None:
    model = MODELS[kind](7)
    loaded = load(model)
    for prompt in PROMPTS[:3]:
        wanted = expected(model, prompt, 24, repetition_penalty=1.3)
        assert texts_of(ask(loaded, prompt, max_tokens=24, repetition_penalty=1.3)) == [wanted]


@pytest.mark.parametrize("typed", ["the order to", "hel", "pay you th", "to "])
def test_what_was_typed_constrains_t5_as_a_prefix_function_would(load: Load, tmp_path: Path, typed: str) -> None:
    """transformers has no such thing built in: it is given the same rule, and must come to the same tokens."""
    model, tokenizer = t5(9), word_tokenizer()
    loaded = load(model)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    words, half = split_typed(typed)
    begun = [0, *(tokenizer.encode(words, add_special_tokens=False).ids if words else [])]
    unfinished = (half if half.startswith(" ") else f" {half}").encode()

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        left = unfinished
        for token in ids[len(begun) :].tolist():
            left = rest_of(left, vocabulary.piece(token))
        return list(vocabulary.continuing(left)) if left else list(range(vocabulary.tokenizer.get_vocab_size()))

    prompt = tokenizer.encode("help").ids
    wanted = greedy(model, prompt, 16, decoder_input_ids=torch.tensor([begun]), prefix_allowed_tokens_fn=allowed)
    spelled = b"".join(vocabulary.piece(token) for token in wanted)
    assert spelled.startswith(unfinished)
    assert texts_of(ask(loaded, "help", typed=typed, max_tokens=16)) == [spelled[len(unfinished) :].decode()]


def test_the_least_number_of_tokens_is_kept(load: Load) -> None:
    model = llama(2)
    loaded, tokenizer = load(model), byte_tokenizer()
    wanted = greedy(model, tokenizer.encode("the").ids, 50, min_new_tokens=50)
    assert END not in tokenizer.decode(wanted, skip_special_tokens=False)
    result = ask(loaded, "the", max_tokens=50, min_tokens=50)
    assert texts_of(result) == [tokenizer.decode(wanted)]
    assert result.output("tokens").data.tolist() == [50]
