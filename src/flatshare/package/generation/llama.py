"""Llama-shaped checkpoints: config.json, tokenizer.json, safetensors; and what of it a GGUF file shares."""

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.spec import GenerationSpec
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import GenerationCheckpoint, chat_template_of, ends_of, template_tokens_of
from flatshare.package.generation.compact import wants_compact
from flatshare.package.generation.rotary import Rotary, read_rotary, rotary_tables
from flatshare.package.graphs.llama import COSINES, SINES, LlamaShape, causal_decoder
from flatshare.package.tensor_source import Source
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import tokenizer_json

_PART = 128  # tokens of a prompt that are read at once
_MAX_SCORED = 16  # rows of a step


def read_llama(folder: Folder, config: Config, sources: dict[str, Source]) -> GenerationCheckpoint:
    """Raises BadPackage or UnsupportedModel."""
    shape = llama_shape(config, is_tied="lm_head.weight" not in sources, is_compact=wants_compact(folder))
    spec = llama_spec(
        shape,
        ends_of(config, folder.optional_json("generation_config.json"), shape.vocabulary),
        chat_template_of(folder),
        template_tokens_of(folder),
    )
    tokenizer = canonical_tokenizer(tokenizer_json(folder, "llama"), vocabulary=shape.vocabulary, max_tokens=shape.positions)
    return llama_checkpoint(shape, spec, rotary_of(config, shape), sources, tokenizer, ())


def llama_shape(config: Config, *, is_tied: bool, is_compact: bool) -> LlamaShape:
    _refuse_variants(config)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    shape = LlamaShape(
        vocabulary=config.size("vocab_size"),
        hidden=hidden,
        layers=config.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads", default=heads),
        head_size=config.size("head_dim", default=max(1, hidden // heads)),
        intermediate=config.size("intermediate_size"),
        positions=config.size("max_position_embeddings"),
        epsilon=config.number("rms_norm_eps", default=1e-6, below=1),
        is_tied=is_tied,
        has_bias=config.get("model_type") == "qwen2",
        is_compact=is_compact,
        windows=_windows(config),
    )
    if shape.heads % shape.kv_heads:
        raise BadPackage(f"{shape.heads} heads cannot share {shape.kv_heads} heads of keys: config.json contradicts itself")
    if shape.head_size % 16:
        raise UnsupportedModel(f"heads of size {shape.head_size} are not served: only multiples of 16 are")
    if is_tied and config.get("tie_word_embeddings") is False:
        raise BadPackage("the weights lack the tensor 'lm_head.weight', which config.json asks for (tie_word_embeddings is false)")
    return shape


def llama_spec(shape: LlamaShape, ends: tuple[int, ...], template: str | None, tokens: tuple[tuple[str, str], ...]) -> GenerationSpec:
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
    shape: LlamaShape, spec: GenerationSpec, rotary: Rotary, sources: dict[str, Source], tokenizer: bytes, notes: tuple[str, ...]
) -> GenerationCheckpoint:
    for name, table in zip((COSINES, SINES), rotary_tables(rotary, shape.positions), strict=True):
        sources[name] = Source(table.shape, "F32", _Given(table))
    return GenerationCheckpoint("llama", causal_decoder(shape), spec, sources, tokenizer, _workspace_bytes(shape), notes)


class _Given:
    """A tensor that is there already."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self._array = array

    def __call__(self) -> NDArray[np.float32]:
        return self._array


def _refuse_variants(config: Config) -> None:
    """What would change the graph."""
    for name in ("attention_bias", "mlp_bias"):
        config.refuse(name, lambda value: value in {False, None}, "false", default=False)
    if config.get("model_type") not in {"mistral", "qwen2"}:
        config.refuse("sliding_window", lambda value: value is None, "null", default=None)
    config.refuse("hidden_act", lambda value: value == "silu", "'silu'", default="silu")


def rotary_of(config: Config, shape: LlamaShape) -> Rotary:
    return read_rotary(config, head_size=shape.head_size, positions=shape.positions)


def _windows(config: Config) -> tuple[int | None, ...]:
    """Mistral's is of all layers; Qwen2's has a switch, and begins at a layer, unless the layers say it one by one."""
    layers, kinds = config.layers("num_hidden_layers"), config.get("layer_types")
    is_qwen = config.get("model_type") == "qwen2"
    if config.get("sliding_window") is None or (is_qwen and not config.flag("use_sliding_window", default=False)):
        return ()
    window = config.size("sliding_window")
    if window >= config.size("max_position_embeddings"):
        return ()
    if not is_qwen:
        return (window,) * layers
    if kinds is None:
        begin = config.size("max_window_layers", default=28, least=0)
        kinds = ["sliding_attention" if layer >= begin else "full_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in {"sliding_attention", "full_attention"} for kind in kinds):
        raise BadPackage(f"config.json: layer_types must name each of {layers} layers 'sliding_attention' or 'full_attention'")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _workspace_bytes(shape: LlamaShape) -> int:
    """Of one part of a prompt at the last position, and of a full step's scores of the vocabulary."""
    streams = _PART * (6 * shape.hidden + 3 * shape.intermediate)
    return 4 * (streams + 2 * shape.heads * _PART * shape.positions + 2 * _MAX_SCORED * shape.vocabulary) + 2**20
