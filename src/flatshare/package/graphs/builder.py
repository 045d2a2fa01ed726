"""Writes an ONNX graph whose weights are inputs: it holds no weights, so one graph serves every model of an architecture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
OPSET = 17
IR_VERSION = 9
INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT
_DOMAINS = {"Gelu": CONTRIB, "FastGelu": CONTRIB}


@dataclass(frozen=True, slots=True)
class WeightInput:
    """A weight that the graph asks for: the name it has in the checkpoint, and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GeneratedGraph:
    """A serialised ONNX model and the weights that it asks for."""

    model: bytes
    weights: tuple[WeightInput, ...]


class GraphBuilder:
    """Collects nodes, constants and weight inputs in order; `finish` makes the model."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.weights: dict[str, WeightInput] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, *shape: int) -> str:
        self.weights.setdefault(name, WeightInput(name, shape))
        return name

    def integers(self, name: str, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """A float32 scalar constant."""
        return self.constant(name, np.array(value, np.float32))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def has(self, output: str) -> bool:
        """Whether some node makes it already."""
        return any(output in node.output for node in self._nodes)

    def node(
        self, op: str, inputs: Sequence[str], output: str, *, domain: str = "", unused: tuple[str, ...] = (), **attributes: object
    ) -> str:
        """`unused` names further outputs that the operator insists on."""
        self._nodes.append(helper.make_node(op, inputs, [output, *unused], domain=domain, **attributes))
        return output

    def parts(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> tuple[str, ...]:
        """A node with several outputs, all of them wanted."""
        self._nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return tuple(outputs)

    def linear(self, x: str, name: str, inputs: int, outputs: int, output: str, *, has_bias: bool = True) -> str:
        """The line x @ weight.T + bias. torch keeps [out, in]: Gemm with transB reads it as it is."""
        operands = [x, self.weight(f"{name}.weight", outputs, inputs)]
        if has_bias:
            operands.append(self.weight(f"{name}.bias", outputs))
        return self.node("Gemm", operands, output, transB=1)

    def activation(self, op: str, x: str, output: str) -> str:
        """`op` is a value of `blocks.ACTIVATIONS`."""
        return self.node(op, [x], output, domain=_DOMAINS.get(op, ""))

    def norm(self, x: str, name: str, width: int, epsilon: float, output: str, *, has_bias: bool = True) -> str:
        """LayerNorm over the last axis."""
        operands = [x, self.weight(f"{name}.weight", width)]
        if has_bias:
            operands.append(self.weight(f"{name}.bias", width))
        return self.node("LayerNormalization", operands, output, epsilon=epsilon, axis=-1)

    def reduce(self, op: str, x: str, axis: int, output: str, *, keepdims: int = 0) -> str:
        """A reduction over one axis, which is an attribute up to opset 17 and an input since (of ReduceSum since 13)."""
        if self.opset >= 18 or op == "ReduceSum":
            return self.node(op, [x, self.integers(f"reduced_axis_{axis}", axis)], output, keepdims=keepdims)
        return self.node(op, [x], output, axes=[axis], keepdims=keepdims)

    def add_norm(self, x: str, skip: str, name: str, width: int, epsilon: float, output: str) -> str:
        """LayerNorm(x + skip)."""
        inputs = [x, skip, self.weight(f"{name}.weight", width), self.weight(f"{name}.bias", width)]
        return self.node("SkipLayerNormalization", inputs, output, domain=CONTRIB, epsilon=epsilon)

    def append_to(self, graph: onnx.GraphProto, output: str, output_shape: Sequence[str | int]) -> None:
        """Put everything behind another graph's nodes; `output` becomes the only one."""
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._constants.values())
        graph.input.extend(self._weight_values())
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, list(output_shape)))

    def _weight_values(self) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, list(w.shape)) for w in self.weights.values()]

    def finish(self, name: str, inputs: Sequence[str], output: str, output_shape: Sequence[str | int]) -> GeneratedGraph:
        """The model: `inputs` are int64 [texts, tokens], then every weight; `output` is float32."""
        values = [helper.make_tensor_value_info(i, TensorProto.INT64, ["texts", "tokens"]) for i in inputs]
        values += self._weight_values()
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(output_shape))]
        graph = helper.make_graph(self._nodes, name, values, outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flatshare")
        return GeneratedGraph(bytes(model.SerializeToString(deterministic=True)), tuple(self.weights.values()))
