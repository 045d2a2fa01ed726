"""Small random sentence encoders, written as save_pretrained() would, without torch."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import StoredModel
from flatshare.package.importer import ImportReport, import_checkpoint
from flatshare.store.tensors import TensorStore

Tensors = dict[str, NDArray[Any]]
WORDS = (
    "the",
    "order",
    "has",
    "not",
    "arrived",
    "yet",
    "help",
    "me",
    "please",
    "un",
    "##want",
    "##ed",
    "##s",
    "a",
    "b",
    "c",
    ".",
    ",",
    "!",
)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}


@cache
def tokenizer_json(*, special: bool = True, lowercase: bool = True) -> str:
    """A WordPiece tokenizer over VOCABULARY."""
    tokenizer = Tokenizer(WordPiece({token: index for index, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return str(tokenizer.to_str())


def random_weights(seed: int, config: Mapping[str, Any] = CONFIG, *, embeddings_seed: int | None = None) -> Tensors:
    """Weights of spread 0.3, so that wrong ones show in the third decimal. `embeddings_seed` freezes the embeddings."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        linears = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linears |= {"attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for linear, shape in linears.items():
            shapes |= {f"{name}.{linear}.weight": shape, f"{name}.{linear}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{name}.{norm}.weight": (hidden,), f"{name}.{norm}.bias": (hidden,)}
    frozen = np.random.default_rng(seed if embeddings_seed is None else embeddings_seed)
    own = np.random.default_rng((seed, 1))
    return {name: _random(frozen if name.startswith("embeddings.") else own, name, shape) for name, shape in shapes.items()}


def _random(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = random.standard_normal(shape, np.float32) * np.float32(0.3)
    return values + np.float32(1) if name.endswith("LayerNorm.weight") else values


def safetensors(tensors: Tensors, *, metadata: dict[str, str] | None = None) -> bytes:
    """The file's bytes, written by hand."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    config: Mapping[str, Any] = CONFIG,
    tensors: Tensors | None = None,
    tokenizer: str | None = None,
) -> Path:
    """A whole checkpoint: mean pooling, normalised."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_bytes(orjson.dumps(config))
    (folder / "modules.json").write_bytes(orjson.dumps(MODULES))
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "tokenizer.json").write_text(tokenizer or tokenizer_json())
    (folder / "model.safetensors").write_bytes(safetensors(random_weights(seed, config) if tensors is None else tensors))
    return folder


def import_folder(store: TensorStore, folder: Path, *, version: str = "1") -> ImportReport:
    return import_checkpoint(store, folder, ArtifactUri(f"file://{folder}"), version, StoreLimits())


def imported(store: TensorStore, folder: Path) -> StoredModel:
    """The checkpoint as the engine takes it."""
    stored = store.stored(import_folder(store, folder).manifest.digest)
    assert stored is not None
    return stored
