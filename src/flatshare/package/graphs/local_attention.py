"""Attention that reaches a window to either side, in blocks, so that its cost grows with the text and not with its square.

A block of `size` queries meets the block of keys before it, its own and the one after: with a window of one block nothing else is
within reach. For texts shorter than the window, the block is the text.

    keys      | before | own    | after  |        3 · size
    queries            | block  |                 size
    in reach       [···········]                  a query and `window` to either side of it
"""

import numpy as np

from flatshare.package.graphs import blocks
from flatshare.package.graphs.builder import CONTRIB, GraphBuilder

_NEVER = float(np.finfo(np.float32).min)  # a score that softmax makes 0


def frame(g: GraphBuilder, window: int, hidden: int) -> None:
    """Names what all layers share: the sizes of blocks, how queries and keys are laid into them, who sees whom."""
    count = blocks.token_count(g)
    size = g.node("Min", [count, g.integers("window", window)], "block_size")
    above = g.node("Sub", [g.node("Add", [count, size], "count_and_size"), g.integers("one_token", 1)], "rounded_up")
    number = g.node("Div", [above, size], "block_count")
    padded = g.node("Mul", [number, size], "padded_count")
    missing = g.node("Sub", [padded, count], "missing_tokens")
    nothing, width, rest = g.integers("no_padding", 0), g.integers("local_hidden", hidden), g.integers("rest", -1)
    batch = g.node("Gather", ["texts_tokens", g.integers("first_of_shape", 0)], "text_count")
    behind = g.node("Add", [missing, size], "behind_keys")
    g.node("Concat", [nothing, nothing, nothing, nothing, missing, nothing], "query_padding", axis=0)
    g.node("Concat", [nothing, size, nothing, nothing, behind, nothing], "key_padding", axis=0)
    g.node("Concat", [rest, size, width], "query_blocks", axis=0)
    g.node("Concat", [batch, rest, size, width], "key_blocks", axis=0)
    triple = g.node("Mul", [size, g.integers("three", 3)], "key_count")
    g.node("Concat", [rest, triple, width], "key_triples", axis=0)
    g.node("Concat", [batch, padded, width], "padded_full", axis=0)
    for index in range(3):
        g.node("Add", [number, g.integers(f"shift_{index}", index)], f"block_end_{index}")
    _bias(g, batch, window)


def _bias(g: GraphBuilder, batch: str, window: int) -> None:
    """Makes "local_bias" float32 [texts * blocks, 1, size, 3 * size]: 0 where a query sees a key that is in the text."""
    size, triple, number = _range(g, "block_size"), _range(g, "key_count"), _range(g, "block_count")
    row = g.node("Unsqueeze", [size, g.integers("axis_one", 1)], "query_places")
    offset = g.node("Sub", [triple, "block_size"], "key_offsets")  # from the beginning of the query's block
    distance = g.node("Abs", [g.node("Sub", [row, offset], "query_to_key")], "local_distance")
    is_near = g.node("LessOrEqual", [distance, g.integers("reach", window)], "is_near")
    begin = g.node("Unsqueeze", [g.node("Mul", [number, "block_size"], "block_begins"), "axis_one"], "block_begin_column")
    place = g.node("Add", [begin, offset], "key_places")
    is_before_end = g.node("Less", [place, blocks.token_count(g)], "is_before_end")
    is_inside = g.node("And", [g.node("GreaterOrEqual", [place, g.integers("no_place", 0)], "is_after_begin"), is_before_end], "is_inside")
    is_seen = g.node("And", [g.node("Unsqueeze", [is_inside, "axis_one"], "is_inside_rows"), is_near], "is_seen")
    square = g.node("Where", [is_seen, g.number("always", 0.0), g.number("never", _NEVER)], "bias_of_blocks")
    one = g.integers("one_head", 1)
    g.node("Concat", [batch, one, one, one], "once_per_text", axis=0)
    by_text = g.node("Unsqueeze", [square, g.integers("text_axis", 0)], "bias_by_text")
    tiled = g.node("Tile", [by_text, "once_per_text"], "bias_tiled")
    g.node("Concat", [g.integers("rest", -1), one, "block_size", "key_count"], "bias_shape", axis=0)
    g.node("Reshape", [tiled, "bias_shape"], "local_bias")


def _range(g: GraphBuilder, count: str) -> str:
    """int64: 0, 1, … up to the number that `count` [1] holds."""
    zero, one = (g.node("Squeeze", [g.integers(f"{count}.{value}_list", value)], f"{count}.{value}") for value in (0, 1))
    return g.node("Range", [zero, g.node("Squeeze", [count], f"{count}.scalar"), one], f"{count}.range")


def attention(g: GraphBuilder, query: str, key: str, value: str, heads: int, name: str) -> str:
    """Each [texts, tokens, hidden], and so is the result."""
    asked = g.node("Reshape", [g.node("Pad", [query, "query_padding"], f"{name}.query.padded"), "query_blocks"], f"{name}.query.blocks")
    keys, values = (_triples(g, part, f"{name}.{kind}") for part, kind in ((key, "key"), (value, "value")))
    inputs = [asked, keys, values, "", "", "local_bias"]
    attended = g.node("MultiHeadAttention", inputs, f"{name}.attended.blocks", domain=CONTRIB, num_heads=heads)
    whole = g.node("Reshape", [attended, "padded_full"], f"{name}.attended.padded")
    return g.node("Slice", [whole, g.integers("begin", 0), blocks.token_count(g), g.integers("token_axis", 1)], f"{name}.attended")


def _triples(g: GraphBuilder, x: str, name: str) -> str:
    """[texts * blocks, 3 * size, hidden]: each block's keys with those before and after."""
    padded = g.node("Pad", [x, "key_padding"], f"{name}.padded")
    split = g.node("Reshape", [padded, "key_blocks"], f"{name}.blocks")
    axis = g.integers("token_axis", 1)
    shifted = [g.node("Slice", [split, f"shift_{i}", f"block_end_{i}", axis], f"{name}.shifted_{i}") for i in range(3)]
    return g.node("Reshape", [g.node("Concat", shifted, f"{name}.joined", axis=2), "key_triples"], f"{name}.triples")
