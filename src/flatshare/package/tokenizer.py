"""Tokenizers made canonical, so that equal ones share a digest and none cuts or pads by itself."""

from functools import lru_cache
from typing import Any

import orjson
from tokenizers import Tokenizer

from flatshare.core.errors import BadInput, BadPackage
from flatshare.wire import json_body


@lru_cache(maxsize=2)  # a fleet's models share few tokenizers, and building one takes longer than a small import
def canonical_tokenizer(content: bytes, *, vocabulary: int, max_tokens: int, has_pairs: bool = False, keeps_end: bool = False) -> bytes:
    """tokenizer.json with its baked-in truncation and padding reset, in one spelling.

    Of the truncation only its side stays: `keeps_end` says that long texts lose their beginning.
    Raises BadPackage if it cannot be used, knows tokens that the word embeddings do not have,
    or leaves no room for text (or for two, with `has_pairs`) among `max_tokens`.
    """
    try:
        fields: Any = json_body.parsed(content, "tokenizer.json")
    except BadInput as error:
        raise BadPackage(str(error)) from error
    if not isinstance(fields, dict):
        raise BadPackage("tokenizer.json is not a JSON object")
    fields["truncation"] = fields["padding"] = None
    if keeps_end:
        fields["truncation"] = {"direction": "Left", "max_length": max_tokens, "strategy": "LongestFirst", "stride": 0}
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    _check(canonical, vocabulary, max_tokens, is_pair=has_pairs)
    return canonical


def _check(canonical: bytes, vocabulary: int, max_tokens: int, *, is_pair: bool) -> None:
    try:
        tokenizer = Tokenizer.from_str(canonical.decode())
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise BadPackage(f"tokenizer.json cannot be used: {error}") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocabulary:
        raise BadPackage(
            f"tokenizer.json has token {highest}, the word embeddings have {vocabulary} rows: tokenizer and weights do not belong together"
        )
    special = tokenizer.num_special_tokens_to_add(is_pair=is_pair)
    if special + is_pair >= max_tokens:
        raise BadPackage(f"tokenizer.json adds {special} special tokens, the model takes {max_tokens} tokens: that leaves none for text")
