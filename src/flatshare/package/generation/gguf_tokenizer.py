"""The tokenizer inside a GGUF file, as a tokenizer.json: byte-level ("gpt2") or sentencepiece ("llama")."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flatshare.core.errors import BadPackage, UnsupportedModel

_UNKNOWN, _CONTROL = 2, 3
"""Token types of the format."""
_SINGLE_DIGITS = {"smollm", "llama-bpe-digits"}
_MAX_PIECE_CHARACTERS = 256  # each of its splits is looked up


def tokenizer_of(fields: Mapping[str, Any], tokens: list[str]) -> bytes:
    """Raises UnsupportedModel for other kinds, BadPackage for contents that make no tokenizer."""
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    maker = makers.get(str(fields.get("tokenizer.ggml.model")))
    if maker is None:
        kind = repr(fields.get("tokenizer.ggml.model"))[:64]
        raise UnsupportedModel(f"the tokenizer in the GGUF file is of kind {kind}: put its tokenizer.json beside it")
    types = listed(fields, "tokenizer.ggml.token_type") if "tokenizer.ggml.token_type" in fields else []
    special = [token for token, kind in zip(tokens, types, strict=False) if kind in {_UNKNOWN, _CONTROL}]
    try:
        tokenizer = maker(fields, tokens)
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    except BadPackage:
        raise
    except Exception as error:  # the library raises plain Exception for whatever is wrong
        raise BadPackage(f"the tokenizer in the GGUF file cannot be used: {error}") from error
    return str(tokenizer.to_str()).encode()


def listed(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise BadPackage(f"the GGUF file lacks '{name}'")
    return value


def _byte_level(fields: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """From the file's vocabulary and merges."""
    merges = [tuple(merge.split(" ", 1)) for merge in listed(fields, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    has_digits = fields.get("tokenizer.ggml.pre") in _SINGLE_DIGITS
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if has_digits else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """From the file's pieces and their scores: the higher a piece's score, the earlier its halves are joined."""
    scores = listed(fields, "tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise BadPackage(f"the GGUF file has {len(tokens)} tokens and {len(scores)} scores")
    unknown = fields.get("tokenizer.ggml.unknown_token_id", 0)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=_merges(vocabulary, scores), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    has_space = fields.get("tokenizer.ggml.add_space_prefix", True)
    marks = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks]) if has_space else marks
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if has_space else plain)
    if fields.get("tokenizer.ggml.add_bos_token", True):
        begin = fields.get("tokenizer.ggml.bos_token_id", 1)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{tokens[begin]} $A", special_tokens=[(tokens[begin], begin)])
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, in the order in which sentencepiece would join them."""
    found = []
    for piece, index in vocabulary.items():
        for cut in range(1, min(len(piece), _MAX_PIECE_CHARACTERS)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], index, vocabulary[left], (left, right)))
    return [pair for *_, pair in sorted(found)]
