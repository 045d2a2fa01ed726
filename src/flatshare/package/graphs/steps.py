"""What the graphs of generating models have in common: two graphs in one blob, and inputs and outputs for a key/value cache.

A cache's tensors are inputs and outputs at the same address: GroupQueryAttention then appends in place, each row at its own length.
So rows of a batch need no equal length, nothing is padded, and nothing is copied from step to step.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from flatshare.package.graphs.builder import CONTRIB, IR_VERSION, OPSET, GraphBuilder, WeightInput

_LENGTH_BYTES = 8
Dims = list[str | int]


@dataclass(frozen=True, slots=True)
class GenerationGraphs:
    """`prefill` reads a prompt, `step` adds one token to each row of a batch; they may be the same graph."""

    blob: bytes
    weights: tuple[WeightInput, ...]


def pack(prefill: bytes, step: bytes) -> bytes:
    """Both in one blob, since a model has one graph in the store."""
    return len(prefill).to_bytes(_LENGTH_BYTES, "little") + prefill + step


def unpack(blob: bytes) -> tuple[bytes, bytes]:
    """The prefill graph and the step graph; the second is empty if the first does both."""
    end = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    return blob[_LENGTH_BYTES:end], blob[end:]


class StepBuilder(GraphBuilder):
    """A graph whose inputs and outputs are of any type and shape."""

    def __init__(self) -> None:
        super().__init__()
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, dims: Dims) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, dims))
        return name

    def output(self, name: str, dims: Dims) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
        return name

    def project(self, x: str, name: str, inputs: int, outputs: int, output: str) -> str:
        """The line x @ weight.T, without a bias."""
        return self.linear(x, name, inputs, outputs, output, has_bias=False)

    def rms_norm(self, x: str, name: str, width: int, epsilon: float, output: str) -> str:
        return self.node("SimplifiedLayerNormalization", [x, self.weight(f"{name}.weight", width)], output, axis=-1, epsilon=epsilon)

    def add_rms_norm(self, x: str, skip: str, name: str, width: int, epsilon: float, output: str) -> str:
        """RMSNorm(x + skip); the sum itself is `OUTPUT.sum`."""
        inputs = [x, skip, self.weight(f"{name}.weight", width)]
        unused = ("", "", f"{output}.sum")
        return self.node("SkipSimplifiedLayerNormalization", inputs, output, domain=CONTRIB, unused=unused, epsilon=epsilon)

    def build(self, name: str) -> bytes:
        """The serialised model."""
        values = [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, list(w.shape)) for w in self.weights.values()]
        graph = helper.make_graph(self._nodes, name, self._inputs + values, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flatshare")
        return bytes(model.SerializeToString(deterministic=True))
