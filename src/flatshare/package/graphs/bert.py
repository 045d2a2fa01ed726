"""BERT and its closest kin as generated graphs: BERT (MiniLM, E5, BGE and GTE are BERTs), RoBERTa, XLM-R, CamemBERT, ELECTRA."""

from dataclasses import dataclass

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.graphs import blocks
from flatshare.package.graphs.blocks import BERT_NAMES, LayerShape
from flatshare.package.graphs.builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class BertHead:
    """A family's head over the first token: out(activation(dense(first token)))."""

    dense: str
    activation: str
    out: str


_POOLER = BertHead("pooler.dense", "Tanh", "classifier")
_ROBERTA_HEAD = BertHead("classifier.dense", "Tanh", "classifier.out_proj")
_ELECTRA_HEAD = BertHead("classifier.dense", "Gelu", "classifier.out_proj")  # "gelu" whatever hidden_act says


@dataclass(frozen=True, slots=True)
class BertTrunk:
    """Absolute positions, post-norm layers."""

    family: str
    prefix: str
    layer: LayerShape
    layers: int
    vocabulary: int
    positions: int
    segments: int
    embedding: int
    """Width of the embeddings; projected to the layers' width where that differs (ELECTRA)."""
    padding: int | None
    """Positions begin behind this token id (RoBERTa), or at 0 without one."""
    head: BertHead

    @property
    def hidden(self) -> int:
        return self.layer.hidden

    @property
    def max_tokens(self) -> int:
        return self.positions if self.padding is None else self.positions - self.padding - 1

    @property
    def has_segments(self) -> bool:
        return self.segments > 1

    def workspace_floats(self, tokens: int) -> int:  # noqa: ARG002  # attention in blocks needs no square of scores
        return 8 * self.hidden + 2 * self.layer.intermediate

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        x = blocks.embed(
            g,
            self.embedding,
            self.vocabulary,
            self.positions,
            segments=segments,
            types=self.segments,
            position_ids=None if self.padding is None else blocks.positions_after_padding(g, self.padding),
            epsilon=self.layer.epsilon,
        )
        if self.embedding != self.hidden:
            x = g.linear(x, "embeddings_project", self.embedding, self.hidden, "embeddings_projected")
        for index in range(self.layers):
            x = blocks.post_norm_layer(g, self.layer, BERT_NAMES, f"encoder.layer.{index}", x)
        return x

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        first = blocks.first_token(g, last)
        return blocks.dense_head(g, first, self.hidden, labels, dense=self.head.dense, activation=self.head.activation, out=self.head.out)

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        return g.linear(x, "classifier", self.hidden, labels, "logits")


def read_bert(config: Config) -> BertTrunk:
    return _read(config, "bert", "bert.", head=_POOLER)


def read_roberta(config: Config) -> BertTrunk:
    padding = config.size("pad_token_id", default=1, least=0)
    return _read(config, "roberta", "roberta.", head=_ROBERTA_HEAD, padding=padding)


def read_electra(config: Config) -> BertTrunk:
    embedding = config.size("embedding_size", default=config.size("hidden_size"))
    return _read(config, "electra", "electra.", head=_ELECTRA_HEAD, embedding=embedding)


def _read(
    config: Config, family: str, prefix: str, *, head: BertHead, padding: int | None = None, embedding: int | None = None
) -> BertTrunk:
    refuse_what_is_no_plain_encoder(config)
    heads, hidden = config.heads("num_attention_heads", "hidden_size"), config.size("hidden_size")
    trunk = BertTrunk(
        family=family,
        prefix=prefix,
        layer=LayerShape(
            hidden=hidden,
            heads=heads,
            intermediate=config.size("intermediate_size"),
            epsilon=config.number("layer_norm_eps", default=1e-12, below=1),
            activation=config.activation("hidden_act"),
        ),
        layers=config.layers("num_hidden_layers"),
        vocabulary=config.size("vocab_size"),
        positions=config.size("max_position_embeddings"),
        segments=config.size("type_vocab_size"),
        embedding=embedding or hidden,
        padding=padding,
        head=head,
    )
    if trunk.max_tokens < 2:
        raise BadPackage(
            f"max_position_embeddings {trunk.positions} leaves no room behind pad_token_id {padding}: config.json contradicts itself"
        )
    return trunk


def refuse_what_is_no_plain_encoder(config: Config) -> None:
    """Raises UnsupportedModel for relative positions and decoders, which BERT's own code has as options."""
    config.refuse("position_embedding_type", lambda value: value in (None, "absolute"), "'absolute'", default="absolute")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedModel("config.json describes a decoder: only encoders are served")
