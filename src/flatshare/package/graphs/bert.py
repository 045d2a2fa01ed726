"""The BERT family as a generated graph: embeddings, encoder layers, pooling, normalisation (Devlin et al., 2019, post-norm).

Rows of one run have equal length, so there is no attention mask and nothing is ever padded: ONNX Runtime then takes its
flash-attention kernel, which needs 10 MB less workspace at 512 tokens.
"""

from dataclasses import dataclass
from functools import lru_cache

from flatshare.package.graphs.builder import CONTRIB, GraphBuilder, WeightInput

ACTIVATIONS = {"gelu": "Gelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu", "relu": "Relu"}
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")  # in the order in which sentence-transformers joins them


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes in config.json that decide the graph."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    segments: int
    epsilon: float
    activation: str


@dataclass(frozen=True, slots=True)
class SentenceHead:
    """How token vectors become one vector."""

    poolings: tuple[str, ...]
    is_normalized: bool


@dataclass(frozen=True, slots=True)
class GeneratedGraph:
    """A serialised ONNX model and the weights that it asks for."""

    model: bytes
    weights: tuple[WeightInput, ...]


@lru_cache(maxsize=8)  # a fleet's models are of few architectures, and a graph takes a quarter of a small import
def sentence_encoder(shape: BertShape, head: SentenceHead) -> GeneratedGraph:
    """input_ids int64 [texts, tokens] → embedding float32 [texts, hidden * poolings]."""
    g = GraphBuilder()
    g.integers("flat", -1, shape.hidden)
    g.node("Concat", [g.node("Shape", ["input_ids"], "texts_tokens"), g.integers("hidden", shape.hidden)], "full", axis=0)
    x = _embed(g, shape)
    for layer in range(shape.layers):
        x = _layer(g, shape, f"encoder.layer.{layer}", x)
    last = g.node("Reshape", [x, "full"], "last")
    pooled = [_pool(g, last, pooling) for pooling in head.poolings]
    vector = pooled[0] if len(pooled) == 1 else g.node("Concat", pooled, "joined", axis=1)
    output = _normalize(g, vector) if head.is_normalized else g.node("Identity", [vector], "embedding")
    model = g.finish("bert", ["input_ids"], output, ["texts", shape.hidden * len(head.poolings)])
    return GeneratedGraph(model, tuple(g.weights.values()))


def _embed(g: GraphBuilder, shape: BertShape) -> str:
    ids = g.node("Cast", ["input_ids"], "ids", to=6)  # 6 = int32, which the fused operator wants
    tables = [
        g.weight("embeddings.word_embeddings.weight", shape.vocabulary, shape.hidden),
        g.weight("embeddings.position_embeddings.weight", shape.positions, shape.hidden),
        g.weight("embeddings.token_type_embeddings.weight", shape.segments, shape.hidden),
        g.weight("embeddings.LayerNorm.weight", shape.hidden),
        g.weight("embeddings.LayerNorm.bias", shape.hidden),
    ]
    segments = g.node("Sub", [ids, ids], "segments")
    inputs = [ids, segments, *tables]
    g.node("EmbedLayerNormalization", inputs, "embedded", domain=CONTRIB, unused=("mask_index",), epsilon=shape.epsilon)
    return g.node("Reshape", ["embedded", "flat"], "x")


def _layer(g: GraphBuilder, shape: BertShape, name: str, x: str) -> str:
    """One encoder layer over x [texts * tokens, hidden]."""
    qkv = []
    for part in ("query", "key", "value"):
        projected = g.linear(x, f"{name}.attention.self.{part}", shape.hidden, shape.hidden, f"{name}.{part}.flat")
        qkv.append(g.node("Reshape", [projected, "full"], f"{name}.{part}"))
    attended = g.node("MultiHeadAttention", qkv, f"{name}.attended", domain=CONTRIB, num_heads=shape.heads)
    flat = g.node("Reshape", [attended, "flat"], f"{name}.attended.flat")
    projected = g.linear(flat, f"{name}.attention.output.dense", shape.hidden, shape.hidden, f"{name}.projected")
    middle = g.add_norm(projected, x, f"{name}.attention.output.LayerNorm", shape.hidden, shape.epsilon, f"{name}.middle")
    inner = g.linear(middle, f"{name}.intermediate.dense", shape.hidden, shape.intermediate, f"{name}.inner")
    op = ACTIVATIONS[shape.activation]
    active = g.node(op, [inner], f"{name}.active", domain="" if op == "Relu" else CONTRIB)
    outer = g.linear(active, f"{name}.output.dense", shape.intermediate, shape.hidden, f"{name}.outer")
    return g.add_norm(outer, middle, f"{name}.output.LayerNorm", shape.hidden, shape.epsilon, f"{name}.out")


def _pool(g: GraphBuilder, last: str, pooling: str) -> str:
    """From last [texts, tokens, hidden] to [texts, hidden]. Every token counts: rows are never padded."""
    if pooling == "cls":
        return g.node(
            "Squeeze",
            [g.node("Gather", [last, g.integers("first", 0)], "first_token", axis=1), g.integers("token_axis", 1)],
            "cls",
        )
    if pooling == "max":
        return g.node("ReduceMax", [last], "max", axes=[1], keepdims=0)
    if pooling == "mean":
        return g.node("ReduceMean", [last], "mean", axes=[1], keepdims=0)
    total = g.node("ReduceSum", [last, g.integers("token_axis", 1)], "total", keepdims=0)
    length = g.node("Cast", [g.node("Gather", ["texts_tokens", g.integers("second", 1)], "length")], "length_float", to=1)
    return g.node("Div", [total, g.node("Sqrt", [length], "root_length")], "mean_sqrt_len")


def _normalize(g: GraphBuilder, vector: str) -> str:
    """Divide by the L2 norm, at least 1e-12, as torch.nn.functional.normalize does."""
    norm = g.node("ReduceL2", [vector], "norm", axes=[1], keepdims=1)
    return g.node("Div", [vector, g.node("Max", [norm, g.number("least_norm", 1e-12)], "safe_norm")], "embedding")
