"""Tokenizers made canonical, so that equal ones share a digest and none cuts or pads by itself."""

from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from flatshare.core.errors import BadInput, BadPackage
from flatshare.core.settings import StoreLimits
from flatshare.wire import json_body


def canonical_tokenizer(path: Path, limits: StoreLimits, *, vocabulary: int, max_tokens: int) -> bytes:
    """tokenizer.json with its baked-in truncation and padding reset, in one spelling.

    Raises BadPackage if it cannot be read, knows tokens that the word embeddings do not have,
    or leaves no room for text among `max_tokens`.
    """
    if path.stat().st_size > limits.max_json_bytes:
        raise BadPackage(f"tokenizer.json has more than {limits.max_json_bytes} bytes")
    try:
        fields: Any = json_body.parsed(path.read_bytes(), "tokenizer.json")
    except BadInput as error:
        raise BadPackage(str(error)) from error
    if not isinstance(fields, dict):
        raise BadPackage("tokenizer.json is not a JSON object")
    fields["truncation"] = fields["padding"] = None
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    _check(canonical, vocabulary, max_tokens)
    return canonical


def _check(canonical: bytes, vocabulary: int, max_tokens: int) -> None:
    try:
        tokenizer = Tokenizer.from_str(canonical.decode())
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise BadPackage(f"tokenizer.json cannot be used: {error}") from error
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocabulary:
        raise BadPackage(
            f"tokenizer.json has token {highest}, the word embeddings have {vocabulary} rows: tokenizer and weights do not belong together"
        )
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if special >= max_tokens:
        raise BadPackage(f"tokenizer.json adds {special} special tokens, the model takes {max_tokens} tokens: that leaves none for text")
