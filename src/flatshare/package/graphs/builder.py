"""Writes an ONNX graph whose weights are inputs: it holds no weights, so one graph serves every model of an architecture."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
OPSET = 17
IR_VERSION = 9


@dataclass(frozen=True, slots=True)
class WeightInput:
    """A weight that the graph asks for: the name it has in the checkpoint, and its shape."""

    name: str
    shape: tuple[int, ...]


class GraphBuilder:
    """Collects nodes, constants and weight inputs in order; `finish` makes the model."""

    def __init__(self) -> None:
        self.weights: dict[str, WeightInput] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, *shape: int) -> str:
        self.weights.setdefault(name, WeightInput(name, shape))
        return name

    def integers(self, name: str, *values: int) -> str:
        """A one-dimensional int64 constant."""
        self._constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def number(self, name: str, value: float) -> str:
        """A float32 scalar constant."""
        self._constants[name] = numpy_helper.from_array(np.array(value, np.float32), name)
        return name

    def scalar(self, name: str, value: int) -> str:
        """An int64 constant without dimensions."""
        self._constants[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def node(self, op: str, inputs: list[str], output: str, *, domain: str = "", unused: tuple[str, ...] = (), **attributes: object) -> str:
        """`unused` names further outputs that the operator insists on."""
        self._nodes.append(helper.make_node(op, inputs, [output, *unused], domain=domain, **attributes))
        return output

    def linear(self, x: str, name: str, inputs: int, outputs: int, output: str) -> str:
        """The line x @ weight.T + bias. torch keeps [out, in]: Gemm with transB reads it as it is."""
        weight, bias = self.weight(f"{name}.weight", outputs, inputs), self.weight(f"{name}.bias", outputs)
        return self.node("Gemm", [x, weight, bias], output, transB=1)

    def add_norm(self, x: str, skip: str, name: str, width: int, epsilon: float, output: str) -> str:
        """LayerNorm(x + skip)."""
        inputs = [x, skip, self.weight(f"{name}.weight", width), self.weight(f"{name}.bias", width)]
        return self.node("SkipLayerNormalization", inputs, output, domain=CONTRIB, epsilon=epsilon)

    def finish(self, name: str, inputs: list[str], output: str, output_shape: list[str | int]) -> bytes:
        """The serialised model: `inputs` are int64 [texts, tokens], then every weight; `output` is float32."""
        values = [helper.make_tensor_value_info(i, TensorProto.INT64, ["texts", "tokens"]) for i in inputs]
        values += [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, list(w.shape)) for w in self.weights.values()]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)]
        graph = helper.make_graph(self._nodes, name, values, outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flatshare")
        return bytes(model.SerializeToString(deterministic=True))
