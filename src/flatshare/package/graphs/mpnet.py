"""MPNet as a generated graph (Song et al., 2020): RoBERTa's positions, and a learned bias for each relative distance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage
from flatshare.package.config import Config
from flatshare.package.graphs import blocks
from flatshare.package.graphs.blocks import LayerNames, LayerShape
from flatshare.package.graphs.builder import GraphBuilder

_NAMES = LayerNames(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attended="attention.attn.o",
    attended_norm="attention.LayerNorm",
)
_PADDING = 1  # whatever the config says
_BUCKETS = 32  # likewise
_FARTHEST = 128  # distances beyond share a bucket


@dataclass(frozen=True, slots=True)
class MpnetTrunk:
    layer: LayerShape
    layers: int
    vocabulary: int
    positions: int

    family = "mpnet"
    prefix = "mpnet."
    has_segments = False

    @property
    def hidden(self) -> int:
        return self.layer.hidden

    @property
    def max_tokens(self) -> int:
        return self.positions - _PADDING - 1

    def workspace_floats(self, tokens: int) -> int:
        return 8 * self.hidden + 2 * self.layer.intermediate + 3 * self.layer.heads * tokens

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        assert segments is None, "MPNet has no segments. This is a bug."
        x = blocks.embed(
            g,
            self.hidden,
            self.vocabulary,
            self.positions,
            segments=None,
            types=0,
            position_ids=blocks.positions_after_padding(g, _PADDING),
            epsilon=self.layer.epsilon,
        )
        bias = self._distance_bias(g)
        for index in range(self.layers):
            x = blocks.post_norm_layer(g, self.layer, _NAMES, f"encoder.layer.{index}", x, bias=bias)
        return x

    def _distance_bias(self, g: GraphBuilder) -> str:
        """float32 [1, heads, tokens, tokens], the same in every layer."""
        farthest = self.max_tokens - 1
        table = g.constant("bucket_of_distance", distance_buckets(farthest))
        shifted = g.node("Add", [blocks.distances(g), g.integers("farthest", farthest)], "shifted_distances")
        buckets = g.node("Gather", [table, shifted], "buckets")
        weights = g.weight("encoder.relative_attention_bias.weight", _BUCKETS, self.layer.heads)
        by_place = g.node("Transpose", [g.node("Gather", [weights, buckets], "bias_by_place")], "bias_by_head", perm=[2, 0, 1])
        return g.node("Unsqueeze", [by_place, g.integers("first_axis", 0)], "distance_bias")

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        first = blocks.first_token(g, last)
        return blocks.dense_head(g, first, self.hidden, labels, dense="classifier.dense", activation="Tanh", out="classifier.out_proj")

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        return g.linear(x, "classifier", self.hidden, labels, "logits")


def distance_buckets(farthest: int) -> NDArray[np.int64]:
    """The bucket of each distance (key minus query) from -farthest to farthest: exact near by, logarithmic beyond (T5's scheme)."""
    distance = np.arange(-farthest, farthest + 1)
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    far = np.abs(distance)
    with np.errstate(divide="ignore"):
        # In float32, as torch computes it: whether a distance on a boundary falls on this or that side depends on it.
        steps = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(np.log(_FARTHEST / exact)) * np.float32(half - exact)
    logarithmic = exact + np.where(far > 0, steps, 0).astype(np.int64)
    return np.where(distance > 0, half, 0) + np.where(far < exact, far, np.minimum(logarithmic, half - 1))


def read_mpnet(config: Config) -> MpnetTrunk:
    config.refuse("relative_attention_num_buckets", lambda value: value == _BUCKETS, str(_BUCKETS), default=_BUCKETS)
    trunk = MpnetTrunk(
        layer=LayerShape(
            hidden=config.size("hidden_size"),
            heads=config.heads("num_attention_heads", "hidden_size"),
            intermediate=config.size("intermediate_size"),
            epsilon=config.number("layer_norm_eps", default=1e-12, below=1),
            activation=config.activation("hidden_act"),
        ),
        layers=config.layers("num_hidden_layers"),
        vocabulary=config.size("vocab_size"),
        positions=config.size("max_position_embeddings"),
    )
    if trunk.max_tokens < 2:
        raise BadPackage(f"max_position_embeddings {trunk.positions} leaves no room for text: config.json contradicts itself")
    return trunk
