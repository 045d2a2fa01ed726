"""Llama-shaped checkpoints: config.json, tokenizer.json, safetensors; and what of it a GGUF file shares."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.spec import GenerationSpec
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import (
    GenerationCheckpoint,
    Source,
    canonical,
    chat_template_of,
    ends_of,
    template_tokens_of,
)
from flatshare.package.generation.sizes import layers, number, size
from flatshare.package.graphs.llama import COSINES, SINES, LlamaShape, causal_decoder, rotary_tables

_PART = 128  # tokens of a prompt that are read at once
_MAX_SCORED = 16  # rows of a step


def read_llama(folder: Folder, config: Mapping[str, Any], sources: dict[str, Source]) -> GenerationCheckpoint:
    """Raises BadPackage or UnsupportedModel."""
    shape = llama_shape(config, is_tied="lm_head.weight" not in sources)
    folder.required_path("tokenizer.json", "save it with tokenizer.save_pretrained() of a fast tokenizer")
    spec = llama_spec(
        shape,
        ends_of(config, folder.optional_json("generation_config.json"), shape.vocabulary),
        chat_template_of(folder),
        template_tokens_of(folder),
    )
    return llama_checkpoint(shape, spec, sources, canonical(folder.content("tokenizer.json"), shape.vocabulary), ())


def llama_shape(config: Mapping[str, Any], *, is_tied: bool) -> LlamaShape:
    _refuse_variants(config)
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    shape = LlamaShape(
        vocabulary=size(config, "vocab_size"),
        hidden=hidden,
        layers=layers(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=size(config, "num_key_value_heads", heads),
        head_size=size(config, "head_dim", max(1, hidden // heads)),
        intermediate=size(config, "intermediate_size"),
        positions=size(config, "max_position_embeddings"),
        epsilon=number(config, "rms_norm_eps", 1e-6, 1),
        theta=_theta(config),
        is_tied=is_tied,
        has_bias=config.get("model_type") == "qwen2",
    )
    if shape.heads % shape.kv_heads:
        raise BadPackage(f"{shape.heads} heads cannot share {shape.kv_heads} heads of keys: config.json contradicts itself")
    if shape.head_size % 16:
        raise UnsupportedModel(f"heads of size {shape.head_size} are not served: only multiples of 16 are")
    if is_tied and config.get("tie_word_embeddings") is False:
        raise BadPackage("the weights lack the tensor 'lm_head.weight', which config.json asks for (tie_word_embeddings is false)")
    return shape


def llama_spec(
    shape: LlamaShape, ends: tuple[int, ...], template: str | None, tokens: tuple[tuple[str, str], ...]
) -> GenerationSpec:
    return GenerationSpec(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        vocabulary=shape.vocabulary,
        positions=shape.positions,
        ends=ends,
        chat_template=template,
        template_tokens=tokens,
    )


def llama_checkpoint(
    shape: LlamaShape, spec: GenerationSpec, sources: dict[str, Source], tokenizer: bytes, notes: tuple[str, ...]
) -> GenerationCheckpoint:
    for name, table in zip((COSINES, SINES), rotary_tables(shape), strict=True):
        sources[name] = Source(table.shape, "F32", _Given(table))
    return GenerationCheckpoint("llama", causal_decoder(shape), spec, sources, tokenizer, _workspace_bytes(shape), notes)


class _Given:
    """A tensor that is there already."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self._array = array

    def __call__(self) -> NDArray[np.float32]:
        return self._array


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """What would change the graph."""
    for name, served in (("attention_bias", False), ("mlp_bias", False), ("use_sliding_window", False), ("sliding_window", None)):
        value = config.get(name)
        if name == "sliding_window" and config.get("use_sliding_window") is False:
            continue
        if value not in {served, None}:
            raise UnsupportedModel(f"{name} {repr(value)[:64]} is not served")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"hidden_act {repr(config['hidden_act'])[:64]} is not served: only 'silu' is")


def _theta(config: Mapping[str, Any]) -> float:
    """transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise UnsupportedModel(f"rotary positions of type {repr(kind)[:64]} are not served: only 'default' are")
    return number(rope if "rope_theta" in rope else config, "rope_theta", 10_000.0, 1e9)


def _workspace_bytes(shape: LlamaShape) -> int:
    """Of one part of a prompt at the last position, and of a full step's scores of the vocabulary."""
    streams = _PART * (6 * shape.hidden + 3 * shape.intermediate)
    return 4 * (streams + 2 * shape.heads * _PART * shape.positions + 2 * _MAX_SCORED * shape.vocabulary) + 2**20
