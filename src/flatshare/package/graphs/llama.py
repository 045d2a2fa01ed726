"""Llama-shaped causal models as a generated graph, for prompts and for steps (Touvron et al., 2023).

A prompt is one row of any length, behind what the cache has already; a step is one token for each of many rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import TensorProto

from flatshare.package.graphs.builder import CONTRIB
from flatshare.package.graphs.steps import GenerationGraphs, Graphs, StepBuilder, pack

COSINES, SINES = "rotary.cosines", "rotary.sines"


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes in config.json that decide the graph."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    positions: int
    epsilon: float
    is_tied: bool
    has_bias: bool
    is_compact: bool = False
    windows: tuple[int | None, ...] = ()
    """Of each layer, how many tokens back it sees, itself included; None, or nothing given: all."""


@lru_cache(maxsize=8)
def causal_decoder(shape: LlamaShape) -> GenerationGraphs:
    """input_ids int64 [rows, tokens] and a cache → logits of each row's last token."""
    single, several = _graph(shape, is_narrow=False), _graph(shape, is_narrow=True)
    narrow = several.build("llama")
    return GenerationGraphs(pack(Graphs(narrow, single.build("llama"), narrow)), tuple(single.weights.values()))


def _graph(shape: LlamaShape, *, is_narrow: bool) -> StepBuilder:
    g = StepBuilder(is_compact=shape.is_compact, is_narrow=is_narrow)
    g.input("input_ids", TensorProto.INT64, ["rows", "tokens"])
    g.input("last_positions", TensorProto.INT32, ["rows"])
    g.input("longest", TensorProto.INT32, [1])
    g.integers("flat", -1, shape.hidden)
    g.node("Concat", [g.node("Shape", ["input_ids"], "rows_tokens"), g.integers("rest", -1)], "full", axis=0)
    x = g.node("Reshape", [g.look_up("model.embed_tokens", "input_ids", shape.vocabulary, shape.hidden, "embedded"), "flat"], "x")
    normed = g.rms_norm(x, "model.layers.0.input_layernorm", shape.hidden, shape.epsilon, "normed")
    for layer in range(shape.layers):
        x, normed = _layer(g, shape, layer, x, normed)
    last = g.node("Reshape", [normed, "full"], "last_full")
    last = g.node("Gather", [last, g.constant("minus_one", np.array(-1, np.int64))], "last", axis=1)
    g.project(last, "model.embed_tokens" if shape.is_tied else "lm_head", shape.hidden, shape.vocabulary, "logits", is_fine=True)
    g.output("logits", ["rows", shape.vocabulary])
    return g


def _layer(g: StepBuilder, shape: LlamaShape, layer: int, x: str, normed: str) -> tuple[str, str]:
    """One layer: from the residual stream and its norm to those of the next."""
    name = f"model.layers.{layer}"
    qkv = []
    for part, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        source, width = f"{name}.self_attn.{part}_proj", heads * shape.head_size
        flat = g.project(normed, source, shape.hidden, width, f"{name}.{part}.flat")
        if shape.has_bias:
            flat = g.node("Add", [flat, g.weight(f"{source}.bias", width)], f"{name}.{part}.biased")
        qkv.append(g.node("Reshape", [flat, "full"], f"{name}.{part}"))
    attended = _attend(g, shape, layer, qkv)
    flat = g.node("Reshape", [attended, g.integers("attended_flat", -1, shape.heads * shape.head_size)], f"{name}.attended.flat")
    out = g.project(flat, f"{name}.self_attn.o_proj", shape.heads * shape.head_size, shape.hidden, f"{name}.o")
    middle = g.add_rms_norm(out, x, f"{name}.post_attention_layernorm", shape.hidden, shape.epsilon, f"{name}.middle")
    gate = g.project(middle, f"{name}.mlp.gate_proj", shape.hidden, shape.intermediate, f"{name}.gate")
    up = g.project(middle, f"{name}.mlp.up_proj", shape.hidden, shape.intermediate, f"{name}.up")
    active = g.node("QuickGelu", [gate], f"{name}.active", domain=CONTRIB, alpha=1.0)  # x * sigmoid(x): SiLU
    inner = g.node("Mul", [active, up], f"{name}.inner")
    down = g.project(inner, f"{name}.mlp.down_proj", shape.intermediate, shape.hidden, f"{name}.down")
    norm = "model.norm" if layer == shape.layers - 1 else f"model.layers.{layer + 1}.input_layernorm"
    following = g.add_rms_norm(down, f"{name}.middle.sum", norm, shape.hidden, shape.epsilon, f"{name}.out")
    return f"{following}.sum", following


def _attend(g: StepBuilder, shape: LlamaShape, layer: int, qkv: list[str]) -> str:
    dims: list[str | int] = ["rows", shape.kv_heads, "capacity", shape.head_size]
    past = [g.input(f"past.{layer}.{part}", TensorProto.FLOAT, dims) for part in ("key", "value")]
    present = [g.output(f"present.{layer}.{part}", dims) for part in ("key", "value")]
    tables = [g.weight(table, shape.positions, shape.head_size // 2) for table in (COSINES, SINES)]
    inputs = [*qkv, *past, "last_positions", "longest", *tables]
    sizes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
    window = shape.windows[layer] if shape.windows else None
    if window is not None:
        sizes["local_window_size"] = window
    unused = tuple(present)
    return g.node("GroupQueryAttention", inputs, f"attended.{layer}", domain=CONTRIB, unused=unused, do_rotary=1, **sizes)
