"""T5 checkpoints: config.json, tokenizer.json, safetensors."""

from collections.abc import Mapping
from typing import Any

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.spec import GenerationSpec
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import GenerationCheckpoint, Source, canonical, ends_of
from flatshare.package.generation.sizes import layers, number, size
from flatshare.package.graphs.t5 import ACTIVATIONS, T5Shape, encoder_decoder

POSITIONS = 1024
"""T5 has no last position; this bounds the attention over a text, which grows with its square."""
_GATED = "gated-"


def read_t5(folder: Folder, config: Mapping[str, Any], sources: dict[str, Source]) -> GenerationCheckpoint:
    """Raises BadPackage or UnsupportedModel."""
    shape = _shape(config, is_tied="lm_head.weight" not in sources)
    if "shared.weight" not in sources and "encoder.embed_tokens.weight" in sources:
        sources["shared.weight"] = sources["encoder.embed_tokens.weight"]
    tokenizer = folder.required_path("tokenizer.json", "save it with tokenizer.save_pretrained() of a fast tokenizer")
    start = config.get("decoder_start_token_id", config.get("pad_token_id"))
    if type(start) is not int or not 0 <= start < shape.vocabulary:
        raise BadPackage("config.json: decoder_start_token_id must be a token of the vocabulary")
    spec = GenerationSpec(
        layers=shape.decoder_layers,
        kv_heads=shape.heads,
        head_size=shape.head_size,
        vocabulary=shape.vocabulary,
        positions=POSITIONS,
        ends=ends_of(config, folder.optional_json("generation_config.json"), shape.vocabulary),
        start=start,
        buckets=shape.buckets,
        furthest=shape.furthest,
    )
    content = canonical(folder.content(tokenizer.name), shape.vocabulary)
    return GenerationCheckpoint("t5", encoder_decoder(shape), spec, sources, content, _workspace_bytes(shape), ())


def _shape(config: Mapping[str, Any], *, is_tied: bool) -> T5Shape:
    activation, is_gated = _activation(config.get("feed_forward_proj", "relu"))
    shape = T5Shape(
        vocabulary=size(config, "vocab_size"),
        hidden=size(config, "d_model"),
        layers=layers(config, "num_layers"),
        decoder_layers=layers(config, "num_decoder_layers", layers(config, "num_layers")),
        heads=size(config, "num_heads"),
        head_size=size(config, "d_kv"),
        intermediate=size(config, "d_ff"),
        buckets=size(config, "relative_attention_num_buckets", 32),
        furthest=size(config, "relative_attention_max_distance", 128),
        epsilon=number(config, "layer_norm_epsilon", 1e-6, 1),
        activation=activation,
        is_gated=is_gated,
        is_tied=is_tied,
        is_scaled=config.get("tie_word_embeddings") is not False,
    )
    if shape.head_size % 8:
        raise UnsupportedModel(f"d_kv {shape.head_size} is not served: only multiples of 8 are")
    if shape.buckets % 4 or shape.furthest <= shape.buckets // 2:
        raise BadPackage(f"{shape.buckets} buckets of positions up to {shape.furthest} apart are none that T5 has: config.json contradicts itself")
    return shape


def _activation(value: object) -> tuple[str, bool]:
    """T5 1.1 says "gated-gelu" and means gelu_new."""
    name = str(value)
    is_gated = name.startswith(_GATED)
    plain = name.removeprefix(_GATED)
    activation = "gelu_new" if is_gated and plain == "gelu" else plain
    if activation not in ACTIVATIONS:
        raise UnsupportedModel(f"feed_forward_proj {name[:64]!r} is not served: known are {', '.join(ACTIVATIONS)}, gated or not")
    return activation, is_gated


def _workspace_bytes(shape: T5Shape) -> int:
    """Of the longest text: streams and two rounds of scores; and a step's keys, values and scores of the vocabulary."""
    streams = POSITIONS * (6 * shape.hidden + 4 * shape.inner + 2 * shape.intermediate)
    return 4 * (streams + 3 * shape.heads * POSITIONS**2 + 32 * shape.vocabulary) + 2**20
