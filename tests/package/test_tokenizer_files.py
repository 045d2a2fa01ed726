"""Tokenizers in other files than tokenizer.json answer as transformers' own do, read from the same folder."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.package.folder import Folder
from flatshare.package.tokenizer_files import keeps_end, tokenizer_json
from tests.families import LONG, TEXTS, fast_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = ("", *TEXTS, "Él está aquí", "a[MASK]b <mask> [SEP] </s>", "  two  spaces ", "tab\tand\nline", "x" * 200)


def read(folder: Path, family: str = "bert") -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(Folder(folder, StoreLimits()), family).decode())


def write_settings(folder: Path, kind: str, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"tokenizer_class": kind, **settings}))


def write_vocabulary(folder: Path, kind: str = "word_piece") -> Path:
    """vocab.txt alone, in the order of the ids."""
    vocabulary = fast_tokenizer(kind).get_vocab()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)))
    return folder


def assert_same(found: Tokenizer, folder: Path) -> None:
    expected = AutoTokenizer.from_pretrained(folder)
    for text in ALL:
        assert found.encode(text).ids == expected(text)["input_ids"], text
    pair, wanted = found.encode("the order", "help me"), expected("the order", "help me")
    assert pair.ids == wanted["input_ids"]
    assert pair.type_ids == wanted.get("token_type_ids", pair.type_ids)


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}], ids=str)
@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "BertTokenizer"), ("distilbert", "DistilBertTokenizer"), ("electra", "ElectraTokenizer")]
)
def test_vocab_txt(tmp_path: Path, family: str, kind: str, settings: dict[str, Any]) -> None:
    write_settings(write_vocabulary(tmp_path), kind, **settings)
    assert_same(read(tmp_path, family), tmp_path)


def test_vocab_txt_of_mpnet(tmp_path: Path) -> None:
    write_settings(write_vocabulary(tmp_path, "fairseq_word_piece"), "MPNetTokenizer", unk_token="<unk>")
    assert_same(read(tmp_path, "mpnet"), tmp_path)


def test_vocab_json_with_merges(tmp_path: Path) -> None:
    fields = orjson.loads(fast_tokenizer("byte_level").backend_tokenizer.to_str())
    (tmp_path / "vocab.json").write_bytes(orjson.dumps(fields["model"]["vocab"]))
    merges = "".join(f"{left} {right}\n" for left, right in fields["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    write_settings(tmp_path, "RobertaTokenizer")
    assert_same(read(tmp_path, "roberta"), tmp_path)


def write_sentencepiece(folder: Path, name: str, kind: str) -> Path:
    """A model trained on a handful of words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LONG, *TEXTS] * 3),
        model_writer=model,
        vocab_size=60,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / name).write_bytes(model.getvalue())
    write_settings(folder, kind)
    (folder / "config.json").write_bytes(orjson.dumps({"model_type": "xlm-roberta"}))
    return folder


def test_a_sentencepiece_model_is_converted_by_transformers(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, "sentencepiece.bpe.model", "XLMRobertaTokenizer")
    found = read(tmp_path, "xlm-roberta")
    assert_same(found, tmp_path)
    assert found.encode("the order").tokens[0] == "<s>"


def test_without_transformers_a_sentencepiece_model_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spm.model").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'flatshare\[torch\]'"):
        read(tmp_path)


def test_a_sentencepiece_model_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"not a model")
    write_settings(tmp_path, "XLMRobertaTokenizer")
    with pytest.raises(BadPackage, match="cannot be converted"):
        read(tmp_path)


def test_tokens_that_were_added_later_are_added(tmp_path: Path) -> None:
    write_settings(write_vocabulary(tmp_path), "BertTokenizer")
    size = len(fast_tokenizer("word_piece"))
    (tmp_path / "added_tokens.json").write_bytes(orjson.dumps({"<name>": size, "<city>": size + 1}))
    assert read(tmp_path).encode("<name> help <city>").ids[1::2][:1] == [size]
    (tmp_path / "added_tokens.json").write_bytes(orjson.dumps({"<name>": size + 5}))
    with pytest.raises(BadPackage, match=f"'<name>' cannot have number {size + 5}"):
        read(tmp_path)


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Puts this in a file."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def stated(**settings: Any) -> Callable[[Path], object]:
    return lambda folder: write_settings(folder, "BertTokenizer", **settings)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing at all": (lambda folder: (folder / "vocab.txt").unlink(), "tokenizer.json is missing: save it with"),
    "an empty vocabulary": (text("vocab.txt", ""), r"lacks the special token '\[CLS\]'"),
    "a vocabulary that is not UTF-8": (text("vocab.txt", b"\xff\xfe"), "vocab.txt is not UTF-8"),
    "a special token that is not in it": (stated(cls_token="<none>"), "lacks the special token '<none>'"),
    "a special token that is a number": (stated(cls_token=7), "cls_token must be a text"),
    "a flag that is a text": (stated(do_lower_case="yes"), "do_lower_case must be true or false"),
    "an accent flag that is a text": (stated(strip_accents="yes"), "strip_accents must be true or false"),
    "added tokens without numbers": (text("added_tokens.json", '{"a": "b"}'), "each with its number"),
    "added tokens that are a list": (text("added_tokens.json", "[]"), "added_tokens.json is not a JSON object"),
    "added tokens of nothing": (stated(added_tokens_decoder={"5": {}}), "each with its number"),
    "merges of three": (lambda folder: _byte_level(folder, {"<s>": 0, "</s>": 1}, "a b c\n"), "two pieces in each line"),
    "merges of what is not there": (lambda folder: _byte_level(folder, {"<s>": 0, "</s>": 1}, "a b\n"), "do not belong together"),
    "a vocabulary of texts": (lambda folder: _byte_level(folder, {"<s>": "0"}, ""), "must give each token a number"),
    "a vocabulary without an end": (lambda folder: _byte_level(folder, {"<s>": 0}, ""), "lacks the special token '</s>'"),
}


def _byte_level(folder: Path, vocabulary: dict[str, Any], merges: str) -> None:
    (folder / "vocab.txt").unlink()
    (folder / "vocab.json").write_bytes(orjson.dumps(vocabulary))
    (folder / "merges.txt").write_text(merges)


@pytest.mark.parametrize("case", BAD)
def test_files_that_make_no_tokenizer_are_refused(tmp_path: Path, case: str) -> None:
    spoil, sentence = BAD[case]
    spoil(write_vocabulary(tmp_path))
    with pytest.raises(BadPackage, match=sentence):
        read(tmp_path)


def test_a_vocabulary_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"vocab.txt has more than 10 bytes"):
        tokenizer_json(Folder(write_vocabulary(tmp_path), StoreLimits(max_json_bytes=10)), "bert")


def test_a_side_that_is_none_is_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, "BertTokenizer", truncation_side="middle")
    with pytest.raises(BadPackage, match="truncation_side must be left or right, not 'middle'"):
        keeps_end(Folder(tmp_path, StoreLimits()))
