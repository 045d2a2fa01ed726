"""DeBERTa v2 and v3 as generated graphs (He et al., 2021): attention that keeps content and relative position apart.

The score of a query i and a key j has three parts: content to content, content to position (query i with the key of their distance)
and position to content (the query of their distance with key j). The last two are added as a bias to the first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.graphs import blocks
from flatshare.package.graphs.blocks import ACTIVATIONS, LayerNames, LayerShape
from flatshare.package.graphs.builder import GraphBuilder

_NAMES = LayerNames(query="attention.self.query_proj", key="attention.self.key_proj", value="attention.self.value_proj")
_TERMS = {"c2p", "p2c"}


@dataclass(frozen=True, slots=True)
class DebertaTrunk:
    layer: LayerShape
    layers: int
    vocabulary: int
    positions: int
    buckets: int
    """Distances are counted in so many steps to either side, logarithmically; 0 counts each."""
    farthest: int
    terms: tuple[str, ...]
    """Of "c2p" and "p2c", in this order."""
    shares_projections: bool
    has_distance_norm: bool
    pooler_activation: str

    family = "deberta-v2"
    prefix = "deberta."
    has_segments = False

    @property
    def hidden(self) -> int:
        return self.layer.hidden

    @property
    def max_tokens(self) -> int:
        return self.positions

    def workspace_floats(self, tokens: int) -> int:
        scores = self.layer.heads * (4 * tokens + 4 * self._span)
        return 8 * self.hidden + 2 * self.layer.intermediate + scores

    @property
    def _span(self) -> int:
        return self.buckets or self.farthest

    @property
    def _head(self) -> int:
        return self.hidden // self.layer.heads

    @property
    def _scale(self) -> float:
        return 1 / float(np.sqrt(np.float32(self._head * (1 + len(self.terms)))))

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        assert segments is None, "DeBERTa v2 has no segments. This is a bug."
        words = g.node("Gather", [g.weight("embeddings.word_embeddings.weight", self.vocabulary, self.hidden), "input_ids"], "words")
        embedded = g.norm(words, "embeddings.LayerNorm", self.hidden, self.layer.epsilon, "embedded")
        x = g.node("Reshape", [embedded, "flat"], "x")
        distances = g.weight("encoder.rel_embeddings.weight", 2 * self._span, self.hidden)
        if self.has_distance_norm:
            distances = g.norm(distances, "encoder.LayerNorm", self.hidden, self.layer.epsilon, "distance_vectors")
        self._frame(g)
        for index in range(self.layers):
            x = self._layer(g, f"encoder.layer.{index}", x, distances)
        return x

    def _frame(self, g: GraphBuilder) -> None:
        """Shapes, and for each query and key where its distance's score lies among those of the query, and of the key."""
        g.integers("by_head", 0, 0, self.layer.heads, self._head)
        g.integers("distances_by_head", 2 * self._span, self.layer.heads, self._head)
        g.integers("scores_in_a_row", 0, 0, -1)
        tokens = blocks.token_count(g)
        g.node("Concat", [g.integers("batch_heads", 0, 0), tokens, tokens], "square", axis=0)
        table = g.constant("place_of_distance", distance_places(self.positions - 1, self.buckets, self.farthest))
        shifted = g.node("Add", [blocks.distances(g), g.integers("largest_distance", self.positions - 1)], "shifted_distances")
        places = g.node("Gather", [table, shifted], "distance_places")
        width = g.integers("scores_of_a_token", 2 * self._span)
        starts = g.node("Mul", [blocks.token_range(g), width], "row_starts")
        by_query = g.node("Unsqueeze", [starts, g.integers("axis_one", 1)], "query_starts")
        by_key = g.node("Unsqueeze", [starts, g.integers("axis_zero", 0)], "key_starts")
        one_row = g.integers("one_row", -1)
        g.node("Reshape", [g.node("Add", [places, by_query], "c2p_square"), one_row], "c2p_places")
        g.node("Reshape", [g.node("Add", [places, by_key], "p2c_square"), one_row], "p2c_places")

    def _layer(self, g: GraphBuilder, name: str, x: str, distances: str) -> str:
        qkv = blocks.project_qkv(g, self.layer, _NAMES, name, x)
        sides = {"c2p": (qkv[0], "key"), "p2c": (qkv[1], "query")}
        terms = [self._term(g, name, term, *sides[term], distances) for term in self.terms]
        total = terms[0] if len(terms) == 1 else g.node("Add", terms, f"{name}.distance_scores")
        bias = g.node("Mul", [total, g.number("scale", self._scale)], f"{name}.distance_bias")
        attended = blocks.attention(g, qkv, self.layer.heads, name, bias=bias, scale=self._scale)
        return blocks.finish_layer(g, self.layer, _NAMES, name, x, attended)

    def _term(self, g: GraphBuilder, name: str, term: str, content: str, side: str, distances: str) -> str:
        """[texts, heads, queries, keys]: `content` vectors times those of each distance, then the one that belongs to each pair."""
        place = f"attention.self.{side}_proj" if self.shares_projections else f"attention.self.pos_{side}_proj"
        projected = g.linear(distances, f"{name}.{place}", self.hidden, self.hidden, f"{name}.{term}.projected")
        split = g.node("Reshape", [projected, "distances_by_head"], f"{name}.{term}.split")
        columns = g.node("Transpose", [split], f"{name}.{term}.columns", perm=[1, 2, 0])
        tokens = g.node("Reshape", [content, "by_head"], f"{name}.{term}.tokens")
        rows = g.node("Transpose", [tokens], f"{name}.{term}.rows", perm=[0, 2, 1, 3])
        scores = g.node("MatMul", [rows, columns], f"{name}.{term}.scores")
        line = g.node("Reshape", [scores, "scores_in_a_row"], f"{name}.{term}.line")
        return g.node("Reshape", [g.node("Gather", [line, f"{term}_places"], f"{name}.{term}.found", axis=2), "square"], f"{name}.{term}")

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        first = blocks.first_token(g, last)
        activation = ACTIVATIONS[self.pooler_activation]
        return blocks.dense_head(g, first, self.hidden, labels, dense="pooler.dense", activation=activation, out="classifier")

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        return g.linear(x, "classifier", self.hidden, labels, "logits")


def distance_places(largest: int, buckets: int, farthest: int) -> NDArray[np.int64]:
    """For each distance (key minus query) from -largest to largest, the row of its vector among the relative embeddings."""
    distance = -np.arange(-largest, largest + 1)  # the paper counts query minus key
    span = buckets or farthest
    if buckets:
        middle = buckets // 2
        # In float32, as torch computes it: ceil() makes a step of the last bit's difference.
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        steps = np.ceil(np.log(far) / np.log(np.float32((farthest - 1) / middle)) * np.float32(middle - 1)) + middle
        distance = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * steps.astype(np.int64))
    return np.clip(distance + span, 0, 2 * span - 1)


def read_deberta(config: Config) -> DebertaTrunk:
    _refuse_other_variants(config)
    hidden, positions = config.size("hidden_size"), config.size("max_position_embeddings", least=2)
    farthest = config.get("max_relative_positions")
    buckets = config.get("position_buckets")
    stated = config.get("pos_att_type")
    terms = [term.strip() for term in stated.lower().split("|")] if isinstance(stated, str) else stated  # "p2c|c2p" in published ones
    if not isinstance(terms, list) or not terms or not all(term in _TERMS for term in terms):
        raise UnsupportedModel(f"pos_att_type {repr(stated)[:64]} is not served: known are c2p and p2c")
    norms = config.expect("norm_rel_ebd", str, "a text", default="none").lower().split("|")
    return DebertaTrunk(
        layer=LayerShape(
            hidden=hidden,
            heads=config.heads("num_attention_heads", "hidden_size"),
            intermediate=config.size("intermediate_size"),
            epsilon=config.number("layer_norm_eps", default=1e-7, below=1),
            activation=config.activation("hidden_act"),
        ),
        layers=config.layers("num_hidden_layers"),
        vocabulary=config.size("vocab_size"),
        positions=positions,
        buckets=config.size("position_buckets", least=4) if buckets not in (None, -1, 0) else 0,
        farthest=config.size("max_relative_positions", least=2) if farthest not in (None, -1, 0) else positions,
        terms=tuple(sorted(set(terms))),
        shares_projections=config.flag("share_att_key", default=False),
        has_distance_norm="layer_norm" in [norm.strip() for norm in norms],
        pooler_activation=config.activation("pooler_hidden_act"),
    )


def _refuse_other_variants(config: Config) -> None:
    hidden = config.size("hidden_size")
    config.refuse("relative_attention", lambda value: value is True, "true", default=False)
    config.refuse("position_biased_input", lambda value: value is False, "false", default=True)
    config.refuse("type_vocab_size", lambda value: value == 0, "0", default=0)
    config.refuse("conv_kernel_size", lambda value: value in (None, 0), "0", default=0)
    config.refuse("embedding_size", lambda value: value in (None, hidden), "the hidden size", default=hidden)
    config.refuse("pooler_hidden_size", lambda value: value in (None, hidden), "the hidden size", default=hidden)
    heads = config.heads("num_attention_heads", "hidden_size")
    config.refuse("attention_head_size", lambda value: value in (None, hidden // heads), "hidden size / heads", default=None)
