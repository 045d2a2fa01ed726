"""DistilBERT as a generated graph (Sanh et al., 2019): BERT's layers under other names, without segments and pooler."""

from dataclasses import dataclass

from flatshare.package.config import Config
from flatshare.package.graphs import blocks
from flatshare.package.graphs.blocks import LayerNames, LayerShape
from flatshare.package.graphs.builder import GraphBuilder

_NAMES = LayerNames(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attended_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    outer_norm="output_layer_norm",
)
_EPSILON = 1e-12  # not in its config


@dataclass(frozen=True, slots=True)
class DistilBertTrunk:
    layer: LayerShape
    layers: int
    vocabulary: int
    positions: int

    family = "distilbert"
    prefix = "distilbert."
    has_segments = False

    @property
    def hidden(self) -> int:
        return self.layer.hidden

    @property
    def max_tokens(self) -> int:
        return self.positions

    def workspace_floats(self, tokens: int) -> int:  # noqa: ARG002  # attention in blocks needs no square of scores
        return 8 * self.hidden + 2 * self.layer.intermediate

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        assert segments is None, "DistilBERT has no segments. This is a bug."
        x = blocks.embed(g, self.hidden, self.vocabulary, self.positions, segments=None, types=0, position_ids=None, epsilon=_EPSILON)
        for index in range(self.layers):
            x = blocks.post_norm_layer(g, self.layer, _NAMES, f"transformer.layer.{index}", x)
        return x

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        first = blocks.first_token(g, last)
        return blocks.dense_head(g, first, self.hidden, labels, dense="pre_classifier", activation="Relu", out="classifier")

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        return g.linear(x, "classifier", self.hidden, labels, "logits")


def read_distilbert(config: Config) -> DistilBertTrunk:
    return DistilBertTrunk(
        layer=LayerShape(
            hidden=config.size("dim"),
            heads=config.heads("n_heads", "dim"),
            intermediate=config.size("hidden_dim"),
            epsilon=_EPSILON,
            activation=config.activation("activation"),
        ),
        layers=config.layers("n_layers"),
        vocabulary=config.size("vocab_size"),
        positions=config.size("max_position_embeddings"),
    )
