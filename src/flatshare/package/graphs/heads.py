"""From a trunk's vectors to an answer: pooling and what follows it, or a family's classification head."""

from dataclasses import dataclass
from functools import lru_cache

from flatshare.core.spec import POOLING_MASK
from flatshare.package.graphs import blocks
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.builder import INT32, GeneratedGraph, GraphBuilder
from flatshare.package.graphs.pooling import pool_all, pool_masked

DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "Tanh",
    "torch.nn.modules.activation.ReLU": "Relu",
    "torch.nn.modules.activation.GELU": "Gelu",
    "torch.nn.modules.activation.Sigmoid": "Sigmoid",
}
"""Activations of sentence-transformers' Dense → operators."""
INPUT_IDS, SEGMENTS = "input_ids", "token_type_ids"


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling, its weights in a folder of their own."""

    path: str
    inputs: int
    outputs: int
    has_bias: bool
    activation: str | None
    has_residual: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """sentence-transformers' LayerNorm module, likewise."""

    path: str
    width: int


@dataclass(frozen=True, slots=True)
class Normalize:
    """Divide by the L2 norm."""


Step = Dense | LayerNorm | Normalize


@dataclass(frozen=True, slots=True)
class SentenceHead:
    """How token vectors become one vector."""

    poolings: tuple[str, ...]
    steps: tuple[Step, ...]
    is_prompt_pooled: bool = True
    """Whether the tokens of a prompt count; if they do not, a run brings a mask of those that do."""

    @property
    def is_normalized(self) -> bool:
        return bool(self.steps) and isinstance(self.steps[-1], Normalize)

    def width(self, hidden: int) -> int:
        """Length of an embedding."""
        dense = [step.outputs for step in self.steps if isinstance(step, Dense)]
        return dense[-1] if dense else hidden * len(self.poolings)


@dataclass(frozen=True, slots=True)
class SequenceHead:
    """One row of logits per text, or per pair of texts."""

    labels: int


@dataclass(frozen=True, slots=True)
class TokenHead:
    """One row of logits per token."""

    labels: int


Head = SentenceHead | SequenceHead | TokenHead


@lru_cache(maxsize=32)  # a fleet's models are of few architectures, and a graph takes a quarter of a small import
def generated_graph(trunk: Trunk, head: Head, *, has_pairs: bool) -> GeneratedGraph:
    """input_ids (and token_type_ids, if the model tells the parts of a pair apart) int64 [texts, tokens] → embedding or logits float32."""
    g = GraphBuilder()
    blocks.frame(g, trunk.hidden)
    segments = g.node("Cast", [SEGMENTS], "segments", to=INT32) if has_pairs and trunk.has_segments else None
    inputs = [INPUT_IDS, *([SEGMENTS] if segments else [])]
    x = trunk.encode(g, segments)
    if isinstance(head, TokenHead):
        logits = trunk.token_logits(g, x, head.labels)
        g.node("Concat", ["texts_tokens", g.integers("labels", head.labels)], "label_shape", axis=0)
        output = g.node("Reshape", [logits, "label_shape"], "token_logits")
        return g.finish(trunk.family, inputs, output, ["texts", "tokens", head.labels])
    last = g.node("Reshape", [x, "full"], "last")
    if isinstance(head, SequenceHead):
        return g.finish(trunk.family, inputs, trunk.sequence_logits(g, last, head.labels), ["texts", head.labels])
    inputs += [] if head.is_prompt_pooled else [POOLING_MASK]
    return g.finish(trunk.family, inputs, pooled_embedding(g, last, head), ["texts", head.width(trunk.hidden)])


def pooled_embedding(g: GraphBuilder, last: str, head: SentenceHead) -> str:
    """From last [texts, tokens, hidden] to one vector per text."""
    pool = pool_all if head.is_prompt_pooled else pool_masked
    pooled = [pool(g, last, pooling) for pooling in head.poolings]
    vector = pooled[0] if len(pooled) == 1 else g.node("Concat", pooled, "joined", axis=1)
    for index, step in enumerate(head.steps):
        vector = _step(g, vector, step, f"step_{index}")
    return g.node("Identity", [vector], "embedding")


def _step(g: GraphBuilder, vector: str, step: Step, name: str) -> str:
    if isinstance(step, Normalize):
        return _normalize(g, vector, name)
    if isinstance(step, LayerNorm):
        return g.norm(vector, f"{step.path}/norm", step.width, 1e-5, name)  # torch.nn.LayerNorm's own epsilon
    out = g.linear(vector, f"{step.path}/linear", step.inputs, step.outputs, f"{name}.linear", has_bias=step.has_bias)
    if step.activation is not None:
        out = g.activation(step.activation, out, f"{name}.active")
    if not step.has_residual:
        return out
    same_width = step.inputs == step.outputs
    skip = vector if same_width else g.linear(vector, f"{step.path}/residual", step.inputs, step.outputs, f"{name}.skip", has_bias=False)
    return g.node("Add", [out, skip], name)


def _normalize(g: GraphBuilder, vector: str, name: str) -> str:
    """Divide by the L2 norm, at least 1e-12, as torch.nn.functional.normalize does."""
    norm = g.reduce("ReduceL2", vector, 1, f"{name}.norm", keepdims=1)
    return g.node("Div", [vector, g.node("Max", [norm, g.number("least_norm", 1e-12)], f"{name}.safe_norm")], name)
