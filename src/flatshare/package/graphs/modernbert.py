"""ModernBERT as a generated graph (Warner et al., 2024): rotary positions, gated feed-forward, attention local and global by turns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.graphs import blocks, local_attention
from flatshare.package.graphs.blocks import ACTIVATIONS
from flatshare.package.graphs.builder import CONTRIB, GraphBuilder

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_OLD_THETAS = {_GLOBAL: "global_rope_theta", _LOCAL: "local_rope_theta"}
_THETAS = {_GLOBAL: 160_000.0, _LOCAL: 10_000.0}


@dataclass(frozen=True, slots=True)
class Rotation:
    """One kind of attention's positions."""

    kind: str
    theta: float


@dataclass(frozen=True, slots=True)
class ModernBertTrunk:
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    max_tokens: int
    kinds: tuple[str, ...]
    """Each layer's kind of attention."""
    rotations: tuple[Rotation, ...]
    window: int
    """Local attention reaches so many tokens to either side."""
    epsilon: float
    activation: str
    has_norm_bias: bool
    has_attention_bias: bool
    has_mlp_bias: bool
    head_activation: str
    has_head_bias: bool
    head_pooling: str

    family = "modernbert"
    prefix = "model."
    has_segments = False

    def workspace_floats(self, tokens: int) -> int:  # noqa: ARG002  # attention in blocks needs no square of scores
        local = 8 * self.hidden + 2 * (self.heads + 1) * 3 * self.window if _LOCAL in self.kinds else 0
        return 10 * self.hidden + 4 * self.intermediate + local

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        assert segments is None, "ModernBERT has no segments. This is a bug."
        words = g.node("Gather", [g.weight("embeddings.tok_embeddings.weight", self.vocabulary, self.hidden), "input_ids"], "words")
        x = g.node("Reshape", [self._norm(g, words, "embeddings.norm"), "flat"], "x")
        for rotation in self.rotations:
            self._rotate(g, rotation)
        if _LOCAL in self.kinds:
            local_attention.frame(g, self.window, self.hidden)
        for index, kind in enumerate(self.kinds):
            x = self._layer(g, f"layers.{index}", x, kind, is_first=index == 0)
        return self._norm(g, x, "final_norm")

    def _norm(self, g: GraphBuilder, x: str, name: str) -> str:
        return g.norm(x, name, self.hidden, self.epsilon, f"{name}.out", has_bias=self.has_norm_bias)

    def _rotate(self, g: GraphBuilder, rotation: Rotation) -> None:
        """Names the cosines and sines [tokens, head / 2] of the angles that a kind of attention turns by."""
        kind = rotation.kind
        frequencies = g.constant(f"{kind}.frequencies", rotary_frequencies(self.hidden // self.heads, rotation.theta))
        places = g.node(
            "Unsqueeze", [blocks.as_float(g, blocks.token_range(g), f"{kind}.range"), g.integers("axis_one", 1)], f"{kind}.places"
        )
        angles = g.node("Mul", [places, frequencies], f"{kind}.angles")
        g.node("Cos", [angles], f"{kind}.cos")
        g.node("Sin", [angles], f"{kind}.sin")

    def _layer(self, g: GraphBuilder, name: str, x: str, kind: str, *, is_first: bool) -> str:
        seen = x if is_first else self._norm(g, x, f"{name}.attn_norm")
        joined = g.linear(seen, f"{name}.attn.Wqkv", self.hidden, 3 * self.hidden, f"{name}.qkv", has_bias=self.has_attention_bias)
        flat = g.parts("Split", [joined], [f"{name}.{part}.flat" for part in ("query", "key", "value")], axis=1)
        query, key, value = (g.node("Reshape", [part, "full"], part.removesuffix(".flat")) for part in flat)
        query, key = self._turned(g, query, kind), self._turned(g, key, kind)
        if kind == _LOCAL:
            attended = local_attention.attention(g, query, key, value, self.heads, name)
        else:
            attended = blocks.attention(g, [query, key, value], self.heads, name)
        attended_flat = g.node("Reshape", [attended, "flat"], f"{name}.attended.flat")
        projected = g.linear(
            attended_flat, f"{name}.attn.Wo", self.hidden, self.hidden, f"{name}.projected", has_bias=self.has_attention_bias
        )
        middle = g.node("Add", [x, projected], f"{name}.middle")
        normed = self._norm(g, middle, f"{name}.mlp_norm")
        inner = g.linear(normed, f"{name}.mlp.Wi", self.hidden, 2 * self.intermediate, f"{name}.inner", has_bias=self.has_mlp_bias)
        content, gate = g.parts("Split", [inner], [f"{name}.content", f"{name}.gate"], axis=1)
        active = g.activation(ACTIVATIONS[self.activation], content, f"{name}.active")
        gated = g.node("Mul", [active, gate], f"{name}.gated")
        outer = g.linear(gated, f"{name}.mlp.Wo", self.intermediate, self.hidden, f"{name}.outer", has_bias=self.has_mlp_bias)
        return g.node("Add", [middle, outer], f"{name}.out")

    def _turned(self, g: GraphBuilder, x: str, kind: str) -> str:
        inputs = [x, g.integers("first_position", 0), f"{kind}.cos", f"{kind}.sin"]
        return g.node("RotaryEmbedding", inputs, f"{x}.turned", domain=CONTRIB)

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        pooled = blocks.first_token(g, last) if self.head_pooling == "cls" else g.reduce("ReduceMean", last, 1, "head_mean")
        return self.token_logits(g, pooled, labels)

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        dense = g.linear(x, "head.dense", self.hidden, self.hidden, "head_inner", has_bias=self.has_head_bias)
        active = g.activation(ACTIVATIONS[self.head_activation], dense, "head_active")
        return g.linear(self._norm(g, active, "head.norm"), "classifier", self.hidden, labels, "logits")


def rotary_frequencies(width: int, theta: float) -> NDArray[np.float32]:
    """[width / 2]: how fast each pair of a head's numbers turns. Rounded to float32 where torch rounds."""
    powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    scales = np.power(theta, powers.astype(np.float64)).astype(np.float32)  # numpy's own float32 power is off in the last bit
    frequencies: NDArray[np.float32] = np.float32(1) / scales
    return frequencies


def read_modernbert(config: Config) -> ModernBertTrunk:
    hidden, heads = config.size("hidden_size"), config.heads("num_attention_heads", "hidden_size")
    if hidden // heads % 2:
        raise BadPackage(f"hidden_size {hidden} / num_attention_heads {heads} is odd: rotary positions turn pairs")
    kinds = _kinds(config)
    pooling = config.expect("classifier_pooling", str, "a text", default="cls")
    if pooling not in {"cls", "mean"}:
        raise UnsupportedModel(f"classifier_pooling {pooling[:64]!r} is not served: known are 'cls' and 'mean'")
    return ModernBertTrunk(
        hidden=hidden,
        heads=heads,
        intermediate=config.size("intermediate_size"),
        vocabulary=config.size("vocab_size"),
        max_tokens=config.size("max_position_embeddings", least=2),
        kinds=kinds,
        rotations=tuple(Rotation(kind, _theta(config, kind)) for kind in (_GLOBAL, _LOCAL) if kind in kinds),
        window=config.size("local_attention", default=128, least=2) // 2,
        epsilon=config.number("norm_eps", default=1e-5, below=1),
        activation=config.activation("hidden_activation"),
        has_norm_bias=config.flag("norm_bias", default=False),
        has_attention_bias=config.flag("attention_bias", default=False),
        has_mlp_bias=config.flag("mlp_bias", default=False),
        head_activation=config.activation("classifier_activation"),
        has_head_bias=config.flag("classifier_bias", default=False),
        head_pooling=pooling,
    )


def _kinds(config: Config) -> tuple[str, ...]:
    layers = config.layers("num_hidden_layers")
    stated = config.get("layer_types")
    if stated is None:
        every = config.size("global_attn_every_n_layers", default=3)
        return tuple(_LOCAL if index % every else _GLOBAL for index in range(layers))
    if not isinstance(stated, list) or len(stated) != layers or not all(kind in (_GLOBAL, _LOCAL) for kind in stated):
        raise BadPackage(f"config.json: layer_types must name {_GLOBAL} or {_LOCAL} for each of {layers} layers")
    return tuple(stated)


def _theta(config: Config, kind: str) -> float:
    """New configs have `rope_parameters` by kind of attention, old ones two numbers; `rope_scaling` was about both kinds."""
    parameters: Any = config.expect("rope_parameters", dict, "an object", default={}).get(kind)
    scaling = config.expect("rope_scaling", dict, "an object", default={})
    fields = Config({**(parameters if isinstance(parameters, dict) else {}), **scaling}, "config.json: rope_parameters")
    if any(fields.get(name) not in (None, "default") for name in ("rope_type", "type")):
        raise UnsupportedModel("scaled rotary positions are not served: only the default kind is")
    if fields.get("rope_theta") is not None:
        return fields.number("rope_theta", default=_THETAS[kind], below=1e12)
    return config.number(_OLD_THETAS[kind], default=_THETAS[kind], below=1e12) if config.get(_OLD_THETAS[kind]) else _THETAS[kind]
