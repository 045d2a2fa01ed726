"""A tokenizer in whatever files a checkpoint has it → one tokenizer.json.

tokenizer.json as it is; vocab.txt (WordPiece) and vocab.json with merges.txt (byte-level BPE) are built here, as transformers builds
them; a sentencepiece model is converted by transformers, which is an extra.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.folder import Folder

_SENTENCEPIECE = ("sentencepiece.bpe.model", "spm.model", "spiece.model", "tokenizer.model")
_HINT = "save it with tokenizer.save_pretrained(); vocab.txt, vocab.json with merges.txt, or a sentencepiece model would do as well"
_FAIRSEQ_FAMILIES = ("mpnet", "roberta", "xlm-roberta", "camembert")
"""Families whose sequences are <s> … </s>."""


def keeps_end(folder: Folder) -> bool:
    """Whether a text that is too long loses its beginning. Raises BadPackage."""
    side = folder.optional_json("tokenizer_config.json").get("truncation_side", "right")
    if side not in {"left", "right"}:
        raise BadPackage(f"tokenizer_config.json: truncation_side must be left or right, not {repr(side)[:64]}")
    return bool(side == "left")


def tokenizer_json(folder: Folder, family: str) -> bytes:
    """Raises BadPackage for what is missing or damaged, UnsupportedModel if an extra is needed."""
    if folder.has("tokenizer.json"):
        return folder.content("tokenizer.json")
    settings = Config(folder.optional_json("tokenizer_config.json"), "tokenizer_config.json")
    if folder.has("vocab.txt"):
        return _spelled(_word_piece(folder, settings, family))
    if folder.has("vocab.json") and folder.has("merges.txt"):
        return _spelled(_byte_level(folder, settings))
    if any(folder.has(name) for name in _SENTENCEPIECE):
        return _spelled(_converted(folder.path))
    raise BadPackage(f"{folder.shown('tokenizer.json')} is missing: {_HINT}")


def _spelled(tokenizer: Tokenizer) -> bytes:
    return str(tokenizer.to_str()).encode()


def _word_piece(folder: Folder, settings: Config, family: str) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(_lines(folder, "vocab.txt"))}
    is_fairseq = family in _FAIRSEQ_FAMILIES
    begin, end = (
        _special(settings, "cls_token", "<s>" if is_fairseq else "[CLS]"),
        _special(settings, "sep_token", "</s>" if is_fairseq else "[SEP]"),
    )
    unknown = _special(settings, "unk_token", "[UNK]")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = BertNormalizer(
        lowercase=settings.flag("do_lower_case", default=True),
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", default=True),
        strip_accents=None if settings.get("strip_accents") is None else settings.flag("strip_accents", default=False),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    others = (
        _special(settings, "pad_token", "<pad>" if is_fairseq else "[PAD]"),
        _special(settings, "mask_token", "<mask>" if is_fairseq else "[MASK]"),
    )
    ids = _ids(vocabulary, begin, end, unknown)
    tokenizer.add_special_tokens([token for token in (begin, end, unknown, *others) if token in vocabulary])
    if is_fairseq:
        tokenizer.post_processor = RobertaProcessing((end, ids[end]), (begin, ids[begin]), add_prefix_space=False)
    else:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{begin}:0 $A:0 {end}:0",
            pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
            special_tokens=[(begin, ids[begin]), (end, ids[end])],
        )
    _add_tokens(folder, settings, tokenizer)
    return tokenizer


def _byte_level(folder: Folder, settings: Config) -> Tokenizer:
    vocabulary = folder.required_json("vocab.json")
    if not all(type(index) is int and index >= 0 for index in vocabulary.values()):
        raise BadPackage(f"{folder.shown('vocab.json')} must give each token a number")
    merges = [_merge(folder, line) for line in _lines(folder, "merges.txt") if line and not line.startswith("#version")]
    begin, end = _special(settings, "cls_token", "<s>"), _special(settings, "sep_token", "</s>")
    others = [
        _special(settings, name, default) for name, default in (("pad_token", "<pad>"), ("unk_token", "<unk>"), ("mask_token", "<mask>"))
    ]
    has_space = settings.flag("add_prefix_space", default=False)
    try:
        tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the files
        raise BadPackage(f"{folder.shown('merges.txt')} and vocab.json do not belong together: {error}") from error
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=has_space)
    ids = _ids(vocabulary, begin, end)
    tokenizer.add_special_tokens([token for token in (begin, end, *others[:2]) if token in vocabulary])
    mask = settings.get("mask_token")
    swallows_space = isinstance(mask, dict) and bool(mask.get("lstrip"))
    if others[2] in vocabulary:
        tokenizer.add_special_tokens([AddedToken(others[2], lstrip=swallows_space, special=True)])
    tokenizer.post_processor = RobertaProcessing((end, ids[end]), (begin, ids[begin]), trim_offsets=True, add_prefix_space=has_space)
    _add_tokens(folder, settings, tokenizer)
    return tokenizer


def _merge(folder: Folder, line: str) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not left or not right or not space or " " in right:
        raise BadPackage(f"{folder.shown('merges.txt')} must have two pieces in each line, not {line[:64]!r}")
    return left, right


def _converted(path: Path) -> Tokenizer:
    """By transformers' own converter for the tokenizer class that the folder names."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            "a sentencepiece tokenizer needs transformers to be converted: pip install 'flatshare[torch]' where the instance runs, "
            "or save tokenizer.json with a fast tokenizer's save_pretrained()"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        backend: Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # whatever transformers and sentencepiece raise for what is wrong with the files
        raise BadPackage(f"the sentencepiece tokenizer cannot be converted: {str(error)[:300]}") from error
    return backend


def _lines(folder: Folder, name: str) -> list[str]:
    try:
        return folder.content(name).decode().removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadPackage(f"{folder.shown(name)} is not UTF-8: {error.reason}") from error


def _special(settings: Config, name: str, default: str) -> str:
    """A special token's text; old configs have an object with its `content`."""
    value = settings.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    if value is None:
        return default
    if not isinstance(value, str) or not value:
        raise BadPackage(f"tokenizer_config.json: {name} must be a text")
    return value


def _ids(vocabulary: dict[str, int], *tokens: str) -> dict[str, int]:
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise BadPackage(f"the vocabulary lacks the special token {missing[0][:64]!r} that tokenizer_config.json or the family asks for")
    return {token: vocabulary[token] for token in tokens}


def _add_tokens(folder: Folder, settings: Config, tokenizer: Tokenizer) -> None:
    """Tokens that were added after the vocabulary: `added_tokens_decoder`, or added_tokens.json of older versions."""
    stated = settings.expect("added_tokens_decoder", dict, "an object", default={})
    named = [(value.get("content"), index) for index, value in stated.items() if isinstance(value, dict)]
    named += list(folder.optional_json("added_tokens.json").items())
    if not all(isinstance(token, str) and str(index).isdecimal() for token, index in named):
        raise BadPackage("added tokens must be texts, each with its number")
    for token, index in sorted(((str(token), int(index)) for token, index in named), key=lambda item: item[1]):
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token) != index:
            raise BadPackage(f"the added token {token[:64]!r} cannot have number {index}: the vocabulary has another place for it")
