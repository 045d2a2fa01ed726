"""T5 checkpoints: config.json, tokenizer.json, safetensors."""

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.spec import GenerationSpec
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import GenerationCheckpoint, ends_of
from flatshare.package.generation.compact import wants_compact
from flatshare.package.graphs.t5 import ACTIVATIONS, T5Shape, encoder_decoder
from flatshare.package.tensor_source import Source
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import tokenizer_json

POSITIONS = 1024
"""T5 has no last position; this bounds the attention over a text, which grows with its square."""
_GATED = "gated-"


def read_t5(folder: Folder, config: Config, sources: dict[str, Source]) -> GenerationCheckpoint:
    """Raises BadPackage or UnsupportedModel."""
    shape = _shape(config, is_tied="lm_head.weight" not in sources, is_compact=wants_compact(folder))
    if "shared.weight" not in sources and "encoder.embed_tokens.weight" in sources:
        sources["shared.weight"] = sources["encoder.embed_tokens.weight"]
    start = config.get("decoder_start_token_id", "pad_token_id")
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
    tokenizer = canonical_tokenizer(tokenizer_json(folder, "t5"), vocabulary=shape.vocabulary, max_tokens=POSITIONS)
    return GenerationCheckpoint("t5", encoder_decoder(shape), spec, sources, tokenizer, _workspace_bytes(shape), ())


def _shape(config: Config, *, is_tied: bool, is_compact: bool) -> T5Shape:
    activation, is_gated = _activation(config.expect("feed_forward_proj", str, "a text", default="relu"))
    shape = T5Shape(
        vocabulary=config.size("vocab_size"),
        hidden=config.size("d_model"),
        layers=config.layers("num_layers"),
        decoder_layers=config.layers("num_decoder_layers" if config.get("num_decoder_layers") is not None else "num_layers"),
        heads=config.size("num_heads"),
        head_size=config.size("d_kv"),
        intermediate=config.size("d_ff"),
        buckets=config.size("relative_attention_num_buckets", default=32),
        furthest=config.size("relative_attention_max_distance", default=128),
        epsilon=config.number("layer_norm_epsilon", default=1e-6, below=1),
        activation=activation,
        is_gated=is_gated,
        is_tied=is_tied,
        # transformers 5 says it by a name of its own; before, 1.1 was known by its untied embeddings
        is_scaled=config.flag("scale_decoder_outputs", default=config.flag("tie_word_embeddings", default=True)),
        is_compact=is_compact,
    )
    if shape.head_size % 8:
        raise UnsupportedModel(f"d_kv {shape.head_size} is not served: only multiples of 8 are")
    if shape.buckets % 4 or shape.furthest <= shape.buckets // 2:
        raise BadPackage(f"{shape.buckets} buckets for positions up to {shape.furthest} apart: config.json contradicts itself")
    return shape


def _activation(name: str) -> tuple[str, bool]:
    """T5 1.1 says "gated-gelu" and means gelu_new."""
    is_gated = name.startswith(_GATED)
    plain = name.removeprefix(_GATED)
    activation = "gelu_new" if is_gated and plain == "gelu" else plain
    if activation not in ACTIVATIONS:
        raise UnsupportedModel(f"feed_forward_proj {name[:64]!r} is not served: known are {', '.join(ACTIVATIONS)}, gated or not")
    return activation, is_gated


def _workspace_bytes(shape: T5Shape) -> int:
    """Of the longest text: streams, keys and values before they are in the cache, scores; and those of a step over the vocabulary."""
    cached = 2 * shape.decoder_layers * shape.inner
    streams = POSITIONS * (6 * shape.hidden + 4 * shape.inner + 2 * shape.intermediate + cached)
    return 4 * (streams + 3 * shape.heads * POSITIONS**2 + 32 * shape.vocabulary) + 2**20
