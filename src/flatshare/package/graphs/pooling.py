"""From a text's token vectors to one vector, each pooling over all of its tokens or over those that a mask leaves in."""

from flatshare.core.spec import POOLING_MASK
from flatshare.package.graphs import blocks
from flatshare.package.graphs.builder import GraphBuilder

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")  # in the order in which old configs join them


def pool_all(g: GraphBuilder, last: str, pooling: str) -> str:
    """From last [texts, tokens, hidden] to [texts, hidden]. Every token counts: rows are never padded."""
    if pooling == "cls":
        return blocks.first_token(g, last)
    if pooling == "lasttoken":
        return _last_token(g, last)
    if pooling == "max":
        return g.reduce("ReduceMax", last, 1, "max")
    if pooling == "mean":
        return g.reduce("ReduceMean", last, 1, "mean")
    if pooling == "weightedmean":
        return _weighted_mean(g, last)
    total = g.reduce("ReduceSum", last, 1, "total")
    length = blocks.as_float(g, blocks.token_count(g), "length_float")
    return g.node("Div", [total, g.node("Sqrt", [length], "root_length")], "mean_sqrt_len")


def pool_masked(g: GraphBuilder, last: str, pooling: str) -> str:
    """The same over the tokens where the run's pooling mask is 1: all but those at the beginning, or none at all.

    What is left of nothing is as sentence-transformers has it: 0, for "cls" the first token, for "max" minus infinity.
    """
    mask = blocks.as_float(g, POOLING_MASK, "mask") if not g.has("mask") else "mask"
    if pooling == "cls":
        return _first_left(g, last, mask)
    if pooling == "lasttoken":
        is_left = g.node("Gather", [mask, g.integers("minus_one", -1)], "last_mask", axis=1)
        return g.node("Mul", [_last_token(g, last), is_left], "last_left")
    if pooling == "max":
        is_out = g.node("Equal", [_beside(g, mask), g.number("no", 0)], "is_out")
        return g.reduce("ReduceMax", g.node("Where", [is_out, g.number("least", float("-inf")), last], "left_of_all"), 1, "max")
    if pooling == "weightedmean":
        places = g.node("Mul", [mask, _places(g)], "weights_line")
        return _mean_by(g, last, places, "weightedmean")
    if pooling == "mean":
        return _mean_by(g, last, mask, "mean")
    total, count = _sums(g, last, mask, "mean_sqrt_len")
    return g.node("Div", [total, g.node("Sqrt", [count], "root_length")], "mean_sqrt_len")


def _last_token(g: GraphBuilder, last: str) -> str:
    row = g.node("Gather", [last, g.integers("minus_one", -1)], "last_token_row", axis=1)
    return g.node("Squeeze", [row, g.integers("token_axis", 1)], "last_token")


def _first_left(g: GraphBuilder, last: str, mask: str) -> str:
    first = g.node("ArgMax", [mask], "first_left_index", axis=1, keepdims=1)
    return g.node("GatherND", [last, first], "first_left", batch_dims=1)


def _weighted_mean(g: GraphBuilder, last: str) -> str:
    """The n-th token counts n times."""
    places = _places(g)
    weights = g.node("Unsqueeze", [places, g.integers("weight_axes", 0, 2)], "weights")
    total = g.reduce("ReduceSum", g.node("Mul", [last, weights], "weighted"), 1, "weighted_total")
    return g.node("Div", [total, g.reduce("ReduceSum", places, 0, "weights_total")], "weightedmean")


def _places(g: GraphBuilder) -> str:
    """[tokens]: 1, 2, 3, …"""
    return g.node("Add", [blocks.as_float(g, blocks.token_range(g), "range_float"), g.number("one_float", 1)], "places")


def _mean_by(g: GraphBuilder, last: str, weights: str, name: str) -> str:
    total, sum_of_weights = _sums(g, last, weights, name)
    return g.node("Div", [total, sum_of_weights], name)


def _sums(g: GraphBuilder, last: str, weights: str, name: str) -> tuple[str, str]:
    """The weighted sum of the vectors [texts, hidden], and of the weights [texts, 1], which is never 0."""
    weighted = g.node("Mul", [last, _beside(g, weights)], f"{name}.weighted")
    total = g.reduce("ReduceSum", weighted, 1, f"{name}.total")
    count = g.reduce("ReduceSum", weights, 1, f"{name}.weights", keepdims=1)
    return total, g.node("Max", [count, g.number("least_weight", 1e-9)], f"{name}.safe_weights")


def _beside(g: GraphBuilder, weights: str) -> str:
    """[texts, tokens] → [texts, tokens, 1]."""
    name = f"{weights}_beside"
    return name if g.has(name) else g.node("Unsqueeze", [weights, g.integers("vector_axis", 2)], name)
