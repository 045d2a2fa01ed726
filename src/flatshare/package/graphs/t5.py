"""The T5 family as generated graphs (Raffel et al., 2020; v1.1 with gated layers).

    prefill   encoder over some texts, and the decoder over the tokens that each answer must begin with
    step      one more token for each row of a batch; once for one row, once for several (docs/decisions/0063-narrow-products.md)

Attention is not scaled, positions are a bias by distance. A row's text is encoded once: its keys and values wait in a cache that
the step reads in place. GroupQueryAttention always appends a token, so the text's last token is kept apart and appended anew,
at the same place, in every step.

Texts that are read together lie one behind the other, so that no product is computed for padding; only attention sees them side by side.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import TensorProto

from flatshare.package.graphs.builder import CONTRIB
from flatshare.package.graphs.steps import GenerationGraphs, Graphs, StepBuilder, pack

ACTIVATIONS = {"gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu", "gelu": "Gelu", "relu": "Relu"}
_FLOAT, _INT32, _INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


@dataclass(frozen=True, slots=True)
class T5Shape:
    """The sizes in config.json that decide the graphs."""

    vocabulary: int
    hidden: int
    layers: int
    decoder_layers: int
    heads: int
    head_size: int
    intermediate: int
    buckets: int
    furthest: int
    epsilon: float
    activation: str
    is_gated: bool
    is_tied: bool
    """The answer's tokens are looked up in the same table as the text's."""
    is_scaled: bool
    """As T5 1.0 does before the table."""
    is_compact: bool = False

    @property
    def inner(self) -> int:
        return self.heads * self.head_size


@lru_cache(maxsize=8)
def encoder_decoder(shape: T5Shape) -> GenerationGraphs:
    """The graphs, and the weights of all."""
    prefill, single = _prefill(shape), _step(shape, is_narrow=False)
    several = _step(shape, is_narrow=True)
    weights = prefill.weights | single.weights
    graphs = Graphs(prefill.build("t5-prefill"), single.build("t5-step"), several.build("t5-step"))
    return GenerationGraphs(pack(graphs), tuple(weights.values()))


def _prefill(shape: T5Shape) -> StepBuilder:
    g = _Layers(shape)
    g.input("input_ids", _INT64, [1, "tokens"])
    g.input("spread", _INT64, ["texts", "longest"])
    g.input("gathered", _INT64, ["tokens"])
    g.input("text_mask", _INT32, ["texts", "longest"])
    g.input("buckets", _INT64, ["longest", "longest"])
    g.input("decoder_ids", _INT64, ["texts", "begun"])
    g.input("decoder_buckets", _INT64, ["begun", "begun"])
    bias = g.position_bias("encoder", "buckets")
    x, normed = g.embed("encoder", "input_ids")
    for layer in range(shape.layers):
        attended = g.encoder_attention(f"encoder.block.{layer}.layer.0.SelfAttention", normed, bias)
        x, normed = g.norm_sum(attended, x, f"encoder.block.{layer}.layer.1.layer_norm")
        fed = g.feed_forward(f"encoder.block.{layer}.layer.1.DenseReluDense", normed)
        x, normed = g.norm_sum(fed, x, g.following("encoder", layer, shape.layers))
    _first_tokens(g, shape, normed)
    return g


def _first_tokens(g: "_Layers", shape: T5Shape, text: str) -> None:
    """The decoder over its first tokens; keys and values of text and tokens are outputs."""
    bias = g.position_bias("decoder", "decoder_buckets")
    x, normed = g.embed("decoder", "decoder_ids")
    for layer in range(shape.decoder_layers):
        block = f"decoder.block.{layer}.layer"
        attended = g.first_attention(f"{block}.0.SelfAttention", normed, bias, cache=f"self.{layer}")
        x, normed = g.norm_sum(attended, x, f"{block}.1.layer_norm")
        attended = g.text_attention(f"{block}.1.EncDecAttention", normed, text, cache=f"text.{layer}")
        x, normed = g.norm_sum(attended, x, f"{block}.2.layer_norm")
        fed = g.feed_forward(f"{block}.2.DenseReluDense", normed)
        x, normed = g.norm_sum(fed, x, g.following("decoder", layer, shape.decoder_layers))
    g.logits(normed)


def _step(shape: T5Shape, *, is_narrow: bool) -> StepBuilder:
    g = _Layers(shape, is_narrow=is_narrow)
    g.input("input_ids", _INT64, ["rows", 1])
    g.input("last_positions", _INT32, ["rows"])
    g.input("longest", _INT32, [1])
    g.input("text_last_positions", _INT32, ["rows"])
    g.input("text_longest", _INT32, [1])
    g.input("buckets", _INT64, ["rows", 1, "total"])
    table = g.weight("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", shape.buckets, shape.heads)
    bias = g.node(
        "Transpose",
        [
            g.node("Gather", [table, "buckets"], "bias_last"),
        ],
        "bias",
        perm=[0, 3, 1, 2],
    )
    x, normed = g.embed("decoder", "input_ids")
    for layer in range(shape.decoder_layers):
        block = f"decoder.block.{layer}.layer"
        attended = g.cached_self_attention(f"{block}.0.SelfAttention", normed, bias, f"self.{layer}")
        x, normed = g.norm_sum(attended, x, f"{block}.1.layer_norm")
        attended = g.cached_text_attention(f"{block}.1.EncDecAttention", normed, f"text.{layer}")
        x, normed = g.norm_sum(attended, x, f"{block}.2.layer_norm")
        fed = g.feed_forward(f"{block}.2.DenseReluDense", normed)
        x, normed = g.norm_sum(fed, x, g.following("decoder", layer, shape.decoder_layers))
    g.logits(normed)
    return g


class _Layers(StepBuilder):
    """T5's pieces. Streams are flat, [rows * tokens, hidden], except around attention."""

    def __init__(self, shape: T5Shape, *, is_narrow: bool = False) -> None:
        super().__init__(is_compact=shape.is_compact, is_narrow=is_narrow)
        self._shape = shape
        self.integers("flat", -1, shape.hidden)
        self.integers("flat_inner", -1, shape.inner)

    def embed(self, side: str, ids: str) -> tuple[str, str]:
        """The stream and its first norm. `SIDE.full` becomes [rows, tokens, -1]."""
        s = self._shape
        self.node("Concat", [self.node("Shape", [ids], f"{side}.rows_tokens"), self.integers("rest", -1)], f"{side}.full", axis=0)
        rows = self.look_up("shared", ids, s.vocabulary, s.hidden, f"{side}.embedded")
        x = self.node("Reshape", [rows, "flat"], f"{side}.x")
        return x, self.rms_norm(x, f"{side}.block.0.layer.0.layer_norm", s.hidden, s.epsilon, f"{side}.normed")

    def position_bias(self, side: str, buckets: str) -> str:
        """[1, heads, tokens, tokens] from the buckets of all distances."""
        s = self._shape
        table = self.weight(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", s.buckets, s.heads)
        looked_up = self.node("Gather", [table, buckets], f"{side}.bias_last")
        turned = self.node("Transpose", [looked_up], f"{side}.bias_three", perm=[2, 0, 1])
        return self.node("Unsqueeze", [turned, self.integers("first_axis", 0)], f"{side}.bias")

    def norm_sum(self, x: str, skip: str, norm: str) -> tuple[str, str]:
        """The stream with `x` added, and its norm."""
        output = self.add_rms_norm(x, skip, norm, self._shape.hidden, self._shape.epsilon, f"{norm}.out")
        return f"{output}.sum", output

    @staticmethod
    def following(side: str, layer: int, layers: int) -> str:
        return f"{side}.final_layer_norm" if layer == layers - 1 else f"{side}.block.{layer + 1}.layer.0.layer_norm"

    def projected(self, name: str, x: str, parts: str, side: str) -> list[str]:
        """Projections q, k or v as [rows, tokens, inner]; of texts side by side, each filled up to the longest."""
        found = []
        for part in parts:
            flat = self.project(x, f"{name}.{part}", self._shape.hidden, self._shape.inner, f"{name}.{part}.flat")
            how = ("Gather", "spread") if side == "encoder" else ("Reshape", f"{side}.full")
            found.append(self.node(how[0], [flat, how[1]], f"{name}.{part}.out"))
        return found

    def joined(self, name: str, attended: str) -> str:
        flat = self.node("Reshape", [attended, "flat_inner"], f"{name}.attended.flat")
        return self.project(flat, f"{name}.o", self._shape.inner, self._shape.hidden, f"{name}.o.out")

    def encoder_attention(self, name: str, x: str, bias: str) -> str:
        """Each text's tokens to each other."""
        inputs = [*self.projected(name, x, "qkv", "encoder"), "", "text_mask", bias]
        attended = self.node("MultiHeadAttention", inputs, f"{name}.attended", domain=CONTRIB, num_heads=self._shape.heads, scale=1.0)
        padded = self.node("Reshape", [attended, "flat_inner"], f"{name}.attended.padded")
        return self.joined(name, self.node("Gather", [padded, "gathered"], f"{name}.attended.texts"))

    def first_attention(self, name: str, x: str, bias: str, cache: str) -> str:
        """Over all tokens that an answer must begin with; keys and values are outputs."""
        inputs = [*self.projected(name, x, "qkv", "decoder"), "", "", bias]
        settings = {"num_heads": self._shape.heads, "scale": 1.0, "unidirectional": 1}
        outputs = self._cache_outputs(cache, "begun")
        return self.joined(name, self.node("MultiHeadAttention", inputs, f"{name}.attended", domain=CONTRIB, unused=outputs, **settings))

    def text_attention(self, name: str, x: str, text: str, cache: str) -> str:
        """From the decoder's tokens to the whole text, whose keys and values are outputs."""
        inputs = [*self.projected(name, x, "q", "decoder"), *self.projected(name, text, "kv", "encoder"), "", "text_mask"]
        settings = {"num_heads": self._shape.heads, "scale": 1.0}
        outputs = self._cache_outputs(cache, "longest")
        return self.joined(name, self.node("MultiHeadAttention", inputs, f"{name}.attended", domain=CONTRIB, unused=outputs, **settings))

    def cached_self_attention(self, name: str, x: str, bias: str, cache: str) -> str:
        past, present = self._cache(cache)
        inputs = [*self.projected(name, x, "qkv", "decoder"), *past, "last_positions", "longest", "", "", "", bias]
        return self.joined(name, self._grouped(inputs, f"{name}.attended", present))

    def cached_text_attention(self, name: str, x: str, cache: str) -> str:
        past, present = self._cache(cache)
        last = [self.input(f"last.{cache}.{part}", _FLOAT, ["rows", 1, self._shape.inner]) for part in ("key", "value")]
        inputs = [*self.projected(name, x, "q", "decoder"), *last, *past, "text_last_positions", "text_longest"]
        return self.joined(name, self._grouped(inputs, f"{name}.attended", present))

    def feed_forward(self, name: str, x: str) -> str:
        s = self._shape
        op, widen = ACTIVATIONS[s.activation], (s.hidden, s.intermediate)
        if s.is_gated:
            active = self.activation(op, self.project(x, f"{name}.wi_0", *widen, f"{name}.wi_0.out"), f"{name}.active")
            inner = self.node("Mul", [active, self.project(x, f"{name}.wi_1", *widen, f"{name}.wi_1.out")], f"{name}.inner")
        else:
            inner = self.activation(op, self.project(x, f"{name}.wi", *widen, f"{name}.wi.out"), f"{name}.inner")
        return self.project(inner, f"{name}.wo", s.intermediate, s.hidden, f"{name}.wo.out")

    def logits(self, normed: str) -> None:
        """Of each row's last token."""
        s = self._shape
        full = self.node("Reshape", [normed, "decoder.full"], "last_full")
        last = self.node("Gather", [full, self.constant("minus_one", np.array(-1, np.int64))], "last", axis=1)
        if s.is_scaled:
            last = self.node("Mul", [last, self.number("scale", s.hidden**-0.5)], "scaled")
        self.project(last, "shared" if s.is_tied else "lm_head", s.hidden, s.vocabulary, "logits", is_fine=True)
        self.output("logits", ["rows", s.vocabulary])

    def _grouped(self, inputs: list[str], output: str, present: tuple[str, ...]) -> str:
        sizes = {"num_heads": self._shape.heads, "kv_num_heads": self._shape.heads, "scale": 1.0}
        return self.node("GroupQueryAttention", inputs, output, domain=CONTRIB, unused=present, **sizes)

    def _cache(self, name: str) -> tuple[list[str], tuple[str, ...]]:
        dims: list[str | int] = ["rows", self._shape.heads, f"{name.partition('.')[0]}_capacity", self._shape.head_size]
        past = [self.input(f"past.{name}.{part}", _FLOAT, dims) for part in ("key", "value")]
        return past, tuple(self.output(f"present.{name}.{part}", dims) for part in ("key", "value"))

    def _cache_outputs(self, name: str, tokens: str) -> tuple[str, ...]:
        dims: list[str | int] = ["texts", self._shape.heads, tokens, self._shape.head_size]
        return tuple(self.output(f"present.{name}.{part}", dims) for part in ("key", "value"))
