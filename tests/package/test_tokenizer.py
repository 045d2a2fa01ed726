"""tokenizer.json: one spelling, no truncation or padding of its own, and only tokens that the model has."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer

from flatshare.core.errors import BadPackage
from flatshare.core.settings import StoreLimits
from flatshare.package.folder import Folder
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import tokenizer_json as read_tokenizer
from tests.checkpoints import VOCABULARY, tokenizer_json


def canonical(folder: Path, content: str | bytes, *, vocabulary: int = len(VOCABULARY), max_tokens: int = 64) -> bytes:
    (folder / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    read = read_tokenizer(Folder(folder, StoreLimits()), "bert")
    return canonical_tokenizer(read, vocabulary=vocabulary, max_tokens=max_tokens)


def changed(**fields: Any) -> bytes:
    return orjson.dumps({**orjson.loads(tokenizer_json()), **fields})


def test_truncation_and_padding_that_were_baked_in_are_reset(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    reset = Tokenizer.from_str(canonical(tmp_path, tokenizer.to_str()).decode())
    assert reset.truncation is None
    assert reset.padding is None
    assert len(reset.encode("the order has not arrived").ids) == 7


def test_the_same_tokenizer_in_another_spelling_is_the_same(tmp_path: Path) -> None:
    fields = orjson.loads(tokenizer_json())
    spelled = orjson.dumps(dict(reversed(fields.items())), option=orjson.OPT_INDENT_2)
    assert canonical(tmp_path, spelled) == canonical(tmp_path, tokenizer_json())


def test_another_tokenizer_is_not_the_same(tmp_path: Path) -> None:
    assert canonical(tmp_path, tokenizer_json(lowercase=False)) != canonical(tmp_path, tokenizer_json())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "cannot be used"),
        (changed(model={"type": "Unheard"}), "cannot be used"),
        (changed(model=None), "cannot be used"),
        (changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}), "cannot be used"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(BadPackage, match=rf"tokenizer.json.*{sentence}"):
        canonical(tmp_path, content)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="do not belong together"):
        canonical(tmp_path, tokenizer_json(), vocabulary=len(VOCABULARY) - 1)


def test_an_added_token_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.add_tokens(["extra"])
    with pytest.raises(BadPackage, match="do not belong together"):
        canonical(tmp_path, tokenizer.to_str())


def test_special_tokens_that_leave_no_room_for_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="none for text"):
        canonical(tmp_path, tokenizer_json(), max_tokens=2)


def test_a_tokenizer_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json())
    with pytest.raises(BadPackage, match="more than 10 bytes"):
        read_tokenizer(Folder(tmp_path, StoreLimits(max_json_bytes=10)), "bert")
