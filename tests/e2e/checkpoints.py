"""Tiny sentence encoders with random weights, each with a seed of its own, and what they must answer."""

import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from flatshare.bench.reference import ReferenceEncoder

HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 32, 2, 4, 64, 64
TEXT = "where is my parcel"
_TEXT = "hello where is my parcel the order has not arrived yet please help i want to return it and get money back"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(_TEXT.split()))]

Tensors = dict[str, NDArray[np.float32]]


def write_checkpoint(folder: Path, seed: int, *, rows: int = 64) -> Path:
    """What save_pretrained() would write. `rows` of word embeddings beyond the vocabulary are ballast, to fill memory with."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_bytes(orjson.dumps(config(rows)))
    (folder / "modules.json").write_bytes(orjson.dumps(_MODULES))
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}))
    (folder / "tokenizer.json").write_text(_tokenizer())
    write_safetensors(folder / "model.safetensors", random_tensors(seed, rows))
    return folder


def config(rows: int = 64) -> dict[str, object]:
    return {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": 2,
        "vocab_size": rows,
    }


def random_tensors(seed: int, rows: int = 64) -> Tensors:
    """Large enough weights that two seeds never answer alike."""
    random = np.random.default_rng(seed)
    shapes = {
        f"embeddings.{name}_embeddings.weight": (n, HIDDEN) for name, n in (("word", rows), ("position", POSITIONS), ("token_type", 2))
    }
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()} | _norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}"
        sizes = {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")} | {
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (INTERMEDIATE, HIDDEN),
            "output.dense": (HIDDEN, INTERMEDIATE),
        }
        for name, size in sizes.items():
            tensors[f"{place}.{name}.weight"] = random.standard_normal(size, np.float32) * np.float32(0.3)
            tensors[f"{place}.{name}.bias"] = random.standard_normal(size[0], np.float32) * np.float32(0.3)
        tensors |= _norm(f"{place}.attention.output.LayerNorm") | _norm(f"{place}.output.LayerNorm")
    return tensors


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """By hand, so that a test can write one that lies as well."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end := end + tensor.nbytes]}
    path.write_bytes(safetensors(header, b"".join(tensor.tobytes() for tensor in tensors.values())))


def safetensors(header: object, data: bytes) -> bytes:
    text = orjson.dumps(header)
    return len(text).to_bytes(8, "little") + text + data


def expected(checkpoint: Path, text: str = TEXT) -> NDArray[np.float32]:
    """What numpy says that the model must answer."""
    return _expected(checkpoint, text)


@lru_cache(maxsize=512)
def _expected(checkpoint: Path, text: str) -> NDArray[np.float32]:
    return ReferenceEncoder(checkpoint).embed(text)


def pack(checkpoint: Path, archive: Path) -> Path:
    """The checkpoint as .tar, .tar.gz or .tar.zst, with its files at the top."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for path in sorted(checkpoint.iterdir()):
            tar.add(path, path.name)
    if archive.suffix == ".zst":
        archive.write_bytes(zstandard.compress(archive.read_bytes()))
    return archive


def _norm(name: str) -> Tensors:
    return {f"{name}.weight": np.ones(HIDDEN, np.float32), f"{name}.bias": np.zeros(HIDDEN, np.float32)}


def _tokenizer() -> str:
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return str(tokenizer.to_str())


_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
