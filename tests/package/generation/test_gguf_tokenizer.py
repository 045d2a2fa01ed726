"""Tokenizers inside GGUF files cut texts as the libraries do from which they come."""

import io
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.generation.gguf_tokenizer import tokenizer_of

SENTENCES = (
    "the order has not been sent and I would like to know when it will be here",
    "please help me with this problem, we need the number for our account",
    "thank you very much; it was to come last week, but there was no time",
    "my order has not arrived yet. can you check where the package is?",
)
TEXTS = (*SENTENCES, "an unknown word: Straße 😀", "12 orders", "the", " two  spaces ", "a")


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=written, model_type="bpe", vocab_size=420, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def fields_of(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    numbers = range(pieces.get_piece_size())
    kinds = [2 if pieces.is_unknown(n) else 3 if pieces.is_control(n) else 6 if pieces.is_byte(n) else 1 for n in numbers]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(n) for n in numbers],
        "tokenizer.ggml.scores": [pieces.get_score(n) for n in numbers],
        "tokenizer.ggml.token_type": kinds,
    }


def test_sentencepiece_tokenizers_cut_as_sentencepiece_does(pieces: sentencepiece.SentencePieceProcessor) -> None:
    fields = fields_of(pieces)
    tokenizer = Tokenizer.from_str(tokenizer_of(fields, fields["tokenizer.ggml.tokens"]).decode())
    for text in TEXTS:
        assert tokenizer.encode(text).ids == [1, *pieces.encode(text)], text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_what_makes_no_tokenizer_is_refused(pieces: sentencepiece.SentencePieceProcessor) -> None:
    fields = fields_of(pieces)
    tokens = fields["tokenizer.ggml.tokens"]
    with pytest.raises(BadPackage, match="and 1 scores"):
        tokenizer_of(fields | {"tokenizer.ggml.scores": [0.0]}, tokens)
    with pytest.raises(BadPackage, match="cannot be used"):
        tokenizer_of(fields | {"tokenizer.ggml.unknown_token_id": 10**6}, tokens)
    with pytest.raises(UnsupportedModel, match="'t5'"):
        tokenizer_of(fields | {"tokenizer.ggml.model": "t5"}, tokens)
