"""GGUF files of Llama-shaped models: one file with config, tokenizer, chat template and weights, quantised or not.

Weights are widened to float32 once, at import. llama.cpp keeps the rows of query and key projections in another order (pairs of
a rotation side by side); they are put back. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import GenerationCheckpoint, checked_template
from flatshare.package.generation.compact import wants_compact
from flatshare.package.generation.gguf_tokenizer import listed, tokenizer_of
from flatshare.package.generation.llama import llama_checkpoint, llama_shape, llama_spec, rotary_of
from flatshare.package.tensor_source import Source
from flatshare.package.tokenizer import canonical_tokenizer

_KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def read_gguf(path: Path, folder: Folder) -> GenerationCheckpoint:
    """Raises BadPackage or UnsupportedModel. A tokenizer.json beside the file comes before the file's own."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError) as error:
        raise BadPackage(f"{path.name} is no GGUF file that can be read: {error}") from error
    if fields.get("general.architecture") != "llama":
        raise UnsupportedModel(f"{path.name} holds a model of architecture {fields.get('general.architecture')!r}: only 'llama' is served")
    config = _config(fields)
    said = Config(config, path.name)
    sources = {_hf_name(tensor.name): _source(tensor, config) for tensor in reader.tensors}
    sources.pop("", None)
    shape = llama_shape(said, is_tied="lm_head.weight" not in sources, is_compact=wants_compact(folder))
    tokens = listed(fields, "tokenizer.ggml.tokens")
    ends = tuple(dict.fromkeys(v for name in ("eos", "eot") if type(v := fields.get(f"tokenizer.ggml.{name}_token_id")) is int))
    if not ends or not all(0 <= end < shape.vocabulary for end in ends):
        raise BadPackage(f"{path.name} names no token that ends a text")
    template = fields.get("tokenizer.chat_template")
    named = tuple(
        (f"{short}_token", tokens[number])
        for name, short in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk"))
        if type(number := fields.get(f"tokenizer.ggml.{name}_token_id")) is int and 0 <= number < len(tokens)
    )
    spec = llama_spec(shape, ends, checked_template(template) if isinstance(template, str) else None, named)
    content = folder.content("tokenizer.json") if folder.has("tokenizer.json") else tokenizer_of(fields, tokens)
    tokenizer = canonical_tokenizer(content, vocabulary=shape.vocabulary, max_tokens=shape.positions)
    return llama_checkpoint(shape, spec, rotary_of(said, shape), sources, tokenizer, _notes(reader))


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As config.json would say it."""
    names = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
        "head_dim": "attention.key_length",
    }
    config = {name: fields[f"llama.{key}"] for name, key in names.items() if f"llama.{key}" in fields}
    config["vocab_size"] = fields.get("llama.vocab_size", len(listed(fields, "tokenizer.ggml.tokens")))
    if fields.get("llama.rope.scaling.type", "none") != "none":
        names = {"rope_type": "type", "factor": "factor", "original_max_position_embeddings": "original_context_length"}
        scaling = {name: fields[key] for name, short in names.items() if (key := f"llama.rope.scaling.{short}") in fields}
        config["rope_scaling"] = scaling | (
            {"attention_factor": fields[key]} if (key := "llama.rope.scaling.attn_factor") in fields else {}
        )
    return config


def _hf_name(name: str) -> str:
    """The tensor's name in a checkpoint of transformers; "" for what the graph has no use for."""
    base, _, kind = name.rpartition(".")
    if base in _TOP_NAMES:
        return f"{_TOP_NAMES[base]}.{kind}"
    parts = base.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    if base == "rope_freqs":
        raise UnsupportedModel("the file scales its rotary positions (rope_freqs): that is not served")
    return ""


def _source(tensor: gguf.ReaderTensor, config: Mapping[str, Any]) -> Source:
    kind = tensor.tensor_type.name
    if kind not in _KINDS:
        raise UnsupportedModel(f"tensor '{tensor.name}' is quantised as {kind}: known are {', '.join(_KINDS)}")
    shape = tuple(int(n) for n in reversed(tensor.shape))
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
    rows = next((count for part, count in heads.items() if f".{part}." in tensor.name), None)
    return Source(shape, kind, lambda: _widened(tensor, shape, rows))


def _widened(tensor: gguf.ReaderTensor, shape: tuple[int, ...], heads: int | None) -> NDArray[np.float32]:
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False).reshape(shape)
    if heads is None or len(shape) != 2:
        return np.ascontiguousarray(values)
    pairs = values.reshape(heads, shape[0] // heads // 2, 2, shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(shape))


def _notes(reader: gguf.GGUFReader) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    return tuple(f"{count} tensors of {kind} were widened to F32" for kind, count in sorted(counts.items()) if kind != "F32")
