"""What the families have in common: the frame of a run, attention, the post-norm encoder layer, position ids.

Rows of one run have equal length, so there is no attention mask and nothing is ever padded: ONNX Runtime then takes its
flash-attention kernel, which needs 10 MB less workspace at 512 tokens (unless a family adds a bias to the scores).
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from flatshare.package.graphs.builder import CONTRIB, FLOAT, INT32, GraphBuilder

ACTIVATIONS = {
    "gelu": "Gelu",
    "gelu_new": "FastGelu",
    "gelu_fast": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "relu": "Relu",
    "tanh": "Tanh",
}
"""Names in config.json → operators. FastGelu is the tanh approximation."""


class Trunk(Hashable, Protocol):
    """An architecture without its head. Frozen and hashable: graphs are kept by it."""

    @property
    def family(self) -> str: ...
    @property
    def hidden(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def max_tokens(self) -> int:
        """The longest run that the architecture admits, special tokens included."""

    @property
    def prefix(self) -> str:
        """What precedes the trunk's names in a checkpoint with a head, such as "bert."."""

    @property
    def has_segments(self) -> bool:
        """Whether the two parts of a pair are told apart by token_type_ids."""

    def workspace_floats(self, tokens: int) -> int:
        """Float32 values alive at once for each token of a run of rows of `tokens`, an upper estimate."""

    def encode(self, g: GraphBuilder, segments: str | None) -> str:
        """From "input_ids", and `segments` int32 of the same shape if the run has pairs, to vectors [texts * tokens, hidden]."""

    def sequence_logits(self, g: GraphBuilder, last: str, labels: int) -> str:
        """The family's own classification head: from last [texts, tokens, hidden] to [texts, labels]."""

    def token_logits(self, g: GraphBuilder, x: str, labels: int) -> str:
        """The family's own head for tokens: from x [texts * tokens, hidden] to [texts * tokens, labels]."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of an encoder layer."""

    hidden: int
    heads: int
    intermediate: int
    epsilon: float
    activation: str


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Where a family keeps the parts of a layer, below the layer's own name."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    outer_norm: str = "output.LayerNorm"


BERT_NAMES = LayerNames()


def frame(g: GraphBuilder, hidden: int) -> None:
    """Names the shapes of a run: "texts_tokens" [2], "full" = [texts, tokens, hidden], "flat" = [texts * tokens, hidden]."""
    g.integers("flat", -1, hidden)
    g.node("Concat", [g.node("Shape", ["input_ids"], "texts_tokens"), g.integers("hidden", hidden)], "full", axis=0)


def token_count(g: GraphBuilder) -> str:
    """int64 [1]: the tokens of each row."""
    if g.has("token_count"):
        return "token_count"
    return g.node("Gather", ["texts_tokens", g.integers("second", 1)], "token_count")


def token_range(g: GraphBuilder) -> str:
    """int64 [tokens]: 0, 1, 2, …"""
    if g.has("token_range"):
        return "token_range"
    scalar = g.node("Squeeze", [token_count(g)], "token_count_scalar")
    return g.node("Range", [_scalar(g, "zero", 0), scalar, _scalar(g, "one", 1)], "token_range")


def _scalar(g: GraphBuilder, name: str, value: int) -> str:
    return g.node("Squeeze", [g.integers(f"{name}_list", value)], name)


def distances(g: GraphBuilder) -> str:
    """int64 [tokens, tokens]: column minus row."""
    tokens = token_range(g)
    rows = g.node("Unsqueeze", [tokens, g.integers("axis_one", 1)], "token_rows")
    columns = g.node("Unsqueeze", [tokens, g.integers("axis_zero", 0)], "token_columns")
    return g.node("Sub", [columns, rows], "distances")


def positions_after_padding(g: GraphBuilder, padding: int) -> str:
    """int32 [texts, tokens] as fairseq counts: from padding + 1 on, a padding token (in the text) staying at `padding`."""
    pad = g.integers("padding", padding)
    is_text = g.node("Cast", [g.node("Not", [g.node("Equal", ["input_ids", pad], "is_padding")], "is_text")], "text_mask", to=INT32)
    counted = g.node("CumSum", [is_text, g.node("Squeeze", [g.integers("count_axis", 1)], "count_axis_scalar")], "counted")
    placed = g.node("Mul", [counted, is_text], "placed")
    return g.node("Add", [placed, g.node("Cast", [pad], "padding_int32", to=INT32)], "position_ids")


def embed(
    g: GraphBuilder,
    width: int,
    vocabulary: int,
    positions: int,
    *,
    segments: str | None,
    types: int,
    position_ids: str | None,
    epsilon: float,
) -> str:
    """Word + position (+ type) embeddings, normalised: [texts * tokens, width]. Without `types` there are no type embeddings."""
    ids = g.node("Cast", ["input_ids"], "ids", to=INT32)  # what the fused operator wants
    tables = [
        g.weight("embeddings.word_embeddings.weight", vocabulary, width),
        g.weight("embeddings.position_embeddings.weight", positions, width),
        g.weight("embeddings.token_type_embeddings.weight", types, width) if types else "",
        g.weight("embeddings.LayerNorm.weight", width),
        g.weight("embeddings.LayerNorm.bias", width),
    ]
    typed = (segments or g.node("Sub", [ids, ids], "segments")) if types else ""
    inputs = [ids, typed, *tables, *(["", position_ids] if position_ids else [])]
    g.node("EmbedLayerNormalization", inputs, "embedded", domain=CONTRIB, unused=("mask_index",), epsilon=epsilon)
    return g.node("Reshape", ["embedded", g.integers("flat_embedded", -1, width)], "x")


def attention(g: GraphBuilder, qkv: list[str], heads: int, name: str, *, bias: str | None = None, scale: float | None = None) -> str:
    """Softmax attention of every token to every token: [texts, tokens, hidden] each. `bias` is added to the scores."""
    inputs = [*qkv, *(["", "", bias] if bias else [])]
    options: dict[str, Any] = {} if scale is None else {"scale": scale}
    return g.node("MultiHeadAttention", inputs, f"{name}.attended", domain=CONTRIB, num_heads=heads, **options)


def project_qkv(g: GraphBuilder, shape: LayerShape, names: LayerNames, name: str, x: str) -> list[str]:
    """Queries, keys and values [texts, tokens, hidden] of x [texts * tokens, hidden]."""
    projected = [
        (part, g.linear(x, f"{name}.{place}", shape.hidden, shape.hidden, f"{name}.{part}.flat"))
        for part, place in (("query", names.query), ("key", names.key), ("value", names.value))
    ]
    return [g.node("Reshape", [flat, "full"], f"{name}.{part}") for part, flat in projected]


def post_norm_layer(g: GraphBuilder, shape: LayerShape, names: LayerNames, name: str, x: str, *, bias: str | None = None) -> str:
    """One encoder layer over x [texts * tokens, hidden], normalising after each half (Devlin et al., 2019)."""
    attended = attention(g, project_qkv(g, shape, names, name, x), shape.heads, name, bias=bias)
    return finish_layer(g, shape, names, name, x, attended)


def finish_layer(g: GraphBuilder, shape: LayerShape, names: LayerNames, name: str, x: str, attended: str) -> str:
    """What follows attention in a post-norm layer: projection, norm, feed-forward, norm."""
    flat = g.node("Reshape", [attended, "flat"], f"{name}.attended.flat")
    projected = g.linear(flat, f"{name}.{names.attended}", shape.hidden, shape.hidden, f"{name}.projected")
    middle = g.add_norm(projected, x, f"{name}.{names.attended_norm}", shape.hidden, shape.epsilon, f"{name}.middle")
    inner = g.linear(middle, f"{name}.{names.inner}", shape.hidden, shape.intermediate, f"{name}.inner_out")
    active = g.activation(ACTIVATIONS[shape.activation], inner, f"{name}.active")
    outer = g.linear(active, f"{name}.{names.outer}", shape.intermediate, shape.hidden, f"{name}.outer_out")
    return g.add_norm(outer, middle, f"{name}.{names.outer_norm}", shape.hidden, shape.epsilon, f"{name}.out")


def first_token(g: GraphBuilder, last: str) -> str:
    """[texts, hidden]: the vector of each row's first token."""
    if g.has("first_token"):
        return "first_token"
    first = g.node("Gather", [last, g.integers("first", 0)], "first_token_row", axis=1)
    return g.node("Squeeze", [first, g.integers("token_axis", 1)], "first_token")


def dense_head(g: GraphBuilder, x: str, hidden: int, labels: int, *, dense: str, activation: str, out: str) -> str:
    """The usual head: out(activation(dense(x)))."""
    inner = g.activation(activation, g.linear(x, dense, hidden, hidden, "head_inner"), "head_active")
    return g.linear(inner, out, hidden, labels, "logits")


def as_float(g: GraphBuilder, x: str, output: str) -> str:
    return g.node("Cast", [x], output, to=FLOAT)
