"""Small random models of every family, as save_pretrained() writes them, with a tokenizer of the kind that the family has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flatshare.core.signature import Task

LONG = "the order has not arrived yet " * 60
TEXTS = ("order", "🙂 help", "the order has not arrived yet", "unwanted helps, please!", LONG, "日本語 的", "a <pad> [PAD] b", "The ORDER")
MAX_TOKENS = 48
_CORPUS = [*TEXTS, "where is my parcel", "I want my money back", "thank you very much", "ok"]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_HEADS = {
    Task.EMBEDDING: "Model",
    Task.CLASSIFICATION: "ForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "ForTokenClassification",
    Task.RANKING: "ForSequenceClassification",
}


@dataclass(frozen=True)
class Family:
    """How to make a model of it: the prefix of transformers' classes, config beyond the usual sizes, and the tokenizer's kind."""

    classes: str
    tokenizer: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=lambda: _SIZES)


FAMILIES = {
    "bert": Family("Bert", "word_piece", {"max_position_embeddings": 64}),
    "distilbert": Family(
        "DistilBert", "word_piece", {"max_position_embeddings": 64}, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    ),
    "roberta": Family("Roberta", "byte_level", {"max_position_embeddings": 52, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": Family("XLMRoberta", "unigram", {"max_position_embeddings": 52, "type_vocab_size": 1, "pad_token_id": 1}),
    "camembert": Family("Camembert", "unigram", {"max_position_embeddings": 52, "type_vocab_size": 1, "pad_token_id": 1}),
    "mpnet": Family("MPNet", "fairseq_word_piece", {"max_position_embeddings": 52}),
    "electra": Family("Electra", "word_piece", {"max_position_embeddings": 64, "embedding_size": 16}),
    "deberta-v3": Family(
        "DebertaV2",
        "bert_unigram",
        {
            "max_position_embeddings": 64,
            "position_buckets": 16,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        },
    ),
    "deberta-v2": Family(
        "DebertaV2",
        "bert_unigram",
        {
            "max_position_embeddings": 64,
            "relative_attention": True,
            "pos_att_type": ["c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": Family(
        "ModernBert",
        "bert_byte_level",
        {
            "max_position_embeddings": 64,
            "local_attention": 16,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        {**_SIZES, "num_hidden_layers": 4},
    ),
}


def save_model(folder: Path, family: str, task: Task, *, seed: int = 0, tokenizer: str | None = None, **config: Any) -> Path:
    """Random weights of spread 0.3 everywhere, so that a wrong one shows."""
    kind = FAMILIES[family]
    words = fast_tokenizer(tokenizer or kind.tokenizer)
    labels = {} if task is Task.EMBEDDING else {"num_labels": 1 if task is Task.RANKING else 3}
    shape = getattr(transformers, f"{kind.classes}Config")(vocab_size=len(words), **kind.sizes, **{**kind.config, **labels, **config})
    model = getattr(transformers, kind.classes + _HEADS[task])(shape)
    randomize(model, seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def randomize(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.3, generator=generator)


def write_sentence_modules(folder: Path, *modules: tuple[str, Mapping[str, Any]], **settings: Any) -> Path:
    """modules.json: a Transformer, then each module with its config. `settings` go to config_sentence_transformers.json."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, config) in enumerate(modules, 1):
        path = f"{index}_{kind}"
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_bytes(orjson.dumps(config))
    (folder / "modules.json").write_bytes(orjson.dumps(listed))
    (folder / "config_sentence_transformers.json").write_bytes(orjson.dumps({"model_type": "SentenceTransformer", **settings}))
    return folder


@cache
def fast_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Trained on a handful of words."""
    is_bert = not kind.startswith("fairseq") and (kind.startswith("bert_") or kind == "word_piece")
    names = "[CLS] [SEP] [PAD] [UNK] [MASK]" if is_bert else "<s> </s> <pad> <unk> <mask>"
    begin, end, pad, unknown, mask = names.split()
    special = [pad, unknown, begin, end, mask] if is_bert else [begin, pad, end, unknown, mask]
    tokenizer = _TRAINED[kind.removeprefix("bert_").removeprefix("fairseq_")](special, unknown)
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    second = "$B:1" if is_bert else f"{end}:0 $B:0"
    last = f"{end}:{int(is_bert)}"
    pair = f"{begin} $A {end} {second} {last}"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        cls_token=begin,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"] if kind == "word_piece" else ["input_ids", "attention_mask"],
    )


def _word_piece(special: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    return tokenizer


def _byte_level(special: list[str], _: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _unigram(special: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


_TRAINED: dict[str, Callable[[list[str], str], Tokenizer]] = {"word_piece": _word_piece, "byte_level": _byte_level, "unigram": _unigram}
