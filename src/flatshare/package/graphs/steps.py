"""What the graphs of generating models have in common: three graphs in one blob, and inputs and outputs for a key/value cache.

A cache's tensors are inputs and outputs at the same address: GroupQueryAttention then appends in place, each row at its own length.
So rows of a batch need no equal length, nothing is padded, and nothing is copied from step to step.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from flatshare.package.graphs.builder import CONTRIB, IR_VERSION, OPSET, GraphBuilder, WeightInput

_LENGTH_BYTES = 8
_THREE = b"3 graphs"  # no length: older blobs begin with one, and hold two graphs
Dims = list[str | int]
INT8, SCALE, REST = ".int8", ".scale", ".rest"
"""Endings of the names under which a compact graph asks for a matrix [inputs, outputs] and its scales; REST for what rounding left."""


@dataclass(frozen=True, slots=True)
class GenerationGraphs:
    """See `Graphs`; in one blob, since a model has one graph in the store."""

    blob: bytes
    weights: tuple[WeightInput, ...]


@dataclass(frozen=True, slots=True)
class Graphs:
    """`prefill` reads prompts, `single` adds a token to one row, `several` one to each of many rows. Some may be the same."""

    prefill: bytes
    single: bytes
    several: bytes


def pack(graphs: Graphs) -> bytes:
    """In one blob; what is the same is there once."""
    parts = (
        graphs.prefill,
        b"" if graphs.single == graphs.several else graphs.single,
        b"" if graphs.several == graphs.prefill else graphs.several,
    )
    return _THREE + b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)


def unpack(blob: bytes) -> Graphs:
    begin, parts = len(_THREE), []
    if not blob.startswith(_THREE):
        end = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
        step = blob[end:] or blob[_LENGTH_BYTES:end]
        return Graphs(blob[_LENGTH_BYTES:end], step, step)
    for _ in range(3):
        end = begin + _LENGTH_BYTES + int.from_bytes(blob[begin : begin + _LENGTH_BYTES], "little")
        parts.append(blob[begin + _LENGTH_BYTES : end])
        begin = end
    prefill, single, several = parts
    several = several or prefill
    return Graphs(prefill, single or several, several)


class StepBuilder(GraphBuilder):
    """A graph whose inputs and outputs are of any type and shape.

    A compact one takes matrices as int8 with a scale per output, and quantises what is multiplied with them on the way.
    A narrow one is made for a few tokens at once: see docs/decisions/0063-narrow-products.md.
    """

    def __init__(self, *, is_compact: bool = False, is_narrow: bool = False) -> None:
        super().__init__()
        self._is_compact = is_compact
        self._is_narrow = is_narrow
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, dims: Dims) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, dims))
        return name

    def output(self, name: str, dims: Dims) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
        return name

    def project(self, x: str, name: str, inputs: int, outputs: int, output: str, *, is_fine: bool = False) -> str:
        """The line x @ weight.T, without a bias.

        A compact graph feeds `x` in two parts of eight bits each, what is coarse and what that leaves; a fine matrix has two parts as well.
        """
        if not self._is_compact:
            if not self._is_narrow:
                return self.linear(x, name, inputs, outputs, output, has_bias=False)
            # The library repacks its second operand in every run: let that be the few tokens, not the matrix.
            turned = self.node("Gemm", [self.weight(f"{name}.weight", outputs, inputs), x], f"{output}.turned", transB=1)
            return self.node("Transpose", [turned], output, perm=[1, 0])
        matrix = self._compact_weight(f"{name}.weight", inputs, outputs)
        coarse = self.parts("DynamicQuantizeLinear", [x], [f"{output}.{part}" for part in ("int8", "step", "zero")])
        rest = self.node("Sub", [x, self.node("DequantizeLinear", coarse, f"{output}.coarse")], f"{output}.rest")
        products = [[x, *matrix], [rest, *matrix]]
        if is_fine:
            products.append([x, *self._compact_weight(f"{name}.weight{REST}", inputs, outputs)])
        sums = [
            self.node("DynamicQuantizeMatMul", operands, f"{output}.product.{index}", domain=CONTRIB)
            for index, operands in enumerate(products)
        ]
        return self.node("Sum", sums, output)

    def look_up(self, name: str, ids: str, rows: int, width: int, output: str) -> str:
        """Rows of a table [rows, width], which may be the matrix of a projection too. `ids` has two dimensions."""
        if not self._is_compact:
            return self.node("Gather", [self.weight(f"{name}.weight", rows, width), ids], output)
        table, scale = self._compact_weight(f"{name}.weight", width, rows)
        columns = self.node("Gather", [table, ids], f"{output}.columns", axis=1)
        turned = self.node("Transpose", [columns], f"{output}.int8", perm=[1, 2, 0])
        plain = self.node("Cast", [turned], f"{output}.unscaled", to=TensorProto.FLOAT)
        scales = self.node(
            "Unsqueeze", [self.node("Gather", [scale, ids], f"{output}.scale"), self.integers("last_axis", -1)], f"{output}.scales"
        )
        return self.node("Mul", [plain, scales], output)

    def _compact_weight(self, name: str, inputs: int, outputs: int) -> tuple[str, str]:
        return self.weight(name + INT8, inputs, outputs), self.weight(name + SCALE, outputs)

    def rms_norm(self, x: str, name: str, width: int, epsilon: float, output: str) -> str:
        return self.node("SimplifiedLayerNormalization", [x, self.weight(f"{name}.weight", width)], output, axis=-1, epsilon=epsilon)

    def add_rms_norm(self, x: str, skip: str, name: str, width: int, epsilon: float, output: str) -> str:
        """RMSNorm(x + skip); the sum itself is `OUTPUT.sum`."""
        inputs = [x, skip, self.weight(f"{name}.weight", width)]
        unused = ("", "", f"{output}.sum")
        return self.node("SkipSimplifiedLayerNormalization", inputs, output, domain=CONTRIB, unused=unused, epsilon=epsilon)

    def build(self, name: str) -> bytes:
        """The serialised model."""
        kinds = {w: TensorProto.INT8 if w.name.endswith(INT8) else TensorProto.FLOAT for w in self.weights.values()}
        values = [helper.make_tensor_value_info(w.name, kind, list(w.shape)) for w, kind in kinds.items()]
        graph = helper.make_graph(self._nodes, name, self._inputs + values, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flatshare")
        return bytes(model.SerializeToString(deterministic=True))
