"""Graphs that we did not write: ONNX files, exported here or by others. Checked, fused offline, and their weights taken out of them.

What comes out is of the same kind as a generated graph: large float32 weights are inputs, which the engine binds to the store.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, compose, external_data_helper, helper, numpy_helper

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.spec import POOLING_MASK
from flatshare.package.graphs import blocks
from flatshare.package.graphs.builder import GraphBuilder
from flatshare.package.graphs.heads import SentenceHead, pooled_embedding

_FOREIGN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
RUN_INPUTS = (*_FOREIGN_INPUTS, POOLING_MASK)
"""What a run brings; the last only if the pooling that we put behind a graph asks for it."""
CLOSE = 1e-4
"""How far a graph may differ from the model that it stands for, relative to the largest number where that is beyond 1."""
_LEAST_WEIGHT_BYTES = 4096  # smaller ones stay in the graph: a page each in the store would be more
_MOST_BYTES = 2**31 - 2**20  # what a protobuf message can be
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_REFUSED = {"Loop", "Scan", "SequenceMap"}  # nothing in a stranger's graph may decide how long it runs


@dataclass(frozen=True, slots=True, eq=False)
class SplitGraph:
    """A graph without its large weights, and those."""

    model: bytes
    weights: dict[str, NDArray[np.float32]]
    kept_bytes: int
    """Weights that stayed in the graph, so that they are private memory: other types than float32, and small ones."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model with its external data. Raises BadPackage or UnsupportedModel for what may not be run here."""
    if path.stat().st_size > _MOST_BYTES:
        raise UnsupportedModel(f"{path.name} has {path.stat().st_size} bytes: at most {_MOST_BYTES} are accepted")
    try:
        model = onnx.load(path, load_external_data=False)
        _check_external(path, model)
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except BadPackage:
        raise
    except Exception as error:  # protobuf's and onnx's own errors have no common base
        raise BadPackage(f"{path.name} is no valid ONNX model: {str(error).strip().partition(chr(10))[0][:300]}") from error
    for node in _nodes(model.graph.node, model.functions):
        if node.op_type in _REFUSED:
            raise UnsupportedModel(f"{path.name} has a {node.op_type}, whose running time nothing bounds: it is not served")
    _check_inputs(path, model)
    return model


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime makes of it while weights are still constants: folded, and its operators fused where it can."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/fused.onnx"
        options.log_severity_level = 3
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises classes of its own without a common base
            raise BadPackage(f"ONNX Runtime refuses the model: {str(error)[:300]}") from error
        return onnx.load(f"{folder}/fused.onnx")


def with_head(model: onnx.ModelProto, output: str, head: SentenceHead, hidden: int) -> onnx.ModelProto:
    """The model, its `output` [texts, tokens, hidden] pooled to one vector per text."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    g = GraphBuilder(opset)
    blocks.frame(g, hidden)
    embedding = pooled_embedding(g, f"model/{output}", head)
    # Names of ours must not meet theirs: an exporter calls a look-up's result "embedding" as well.
    longer = compose.add_prefix(model, "model/", rename_inputs=False, rename_initializers=False)
    g.append_to(longer.graph, embedding, ["texts", head.width(hidden)])
    if not head.is_prompt_pooled:
        longer.graph.input.append(helper.make_tensor_value_info(POOLING_MASK, TensorProto.INT64, ["texts", "tokens"]))
    if all(entry.domain != "com.microsoft" for entry in longer.opset_import):
        longer.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return longer


def only_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one of its outputs; what only the others need is left out when it is fused."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    [value] = [output for output in model.graph.output if output.name == name]
    del kept.graph.output[:]
    kept.graph.output.append(value)
    return kept


def split(model: onnx.ModelProto, output_shape: tuple[int, ...]) -> SplitGraph:
    """Large float32 initializers become inputs; `output_shape` is one that was seen, of two or three axes.

    What a build leaves behind in the file (names of its paths) is dropped, so that graphs of one architecture are the same.
    """
    graph = model.graph
    large = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and 4 * int(np.prod(t.dims)) >= _LEAST_WEIGHT_BYTES}
    weights = {name: np.ascontiguousarray(numpy_helper.to_array(tensor), "<f4") for name, tensor in large.items()}
    small = [tensor for tensor in graph.initializer if tensor.name not in large]
    nodes = list(graph.node)
    for node in nodes:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    inputs = [helper.make_tensor_value_info(i.name, TensorProto.INT64, ["texts", "tokens"]) for i in graph.input if i.name in RUN_INPUTS]
    appended = [value for value in graph.input if value.name not in RUN_INPUTS and value.name not in large]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape)) for name, array in sorted(weights.items())]
    axes = ("texts", "tokens")[: len(output_shape) - 1]
    outputs = [helper.make_tensor_value_info(graph.output[0].name, TensorProto.FLOAT, [*axes, output_shape[-1]])]
    bare = helper.make_graph(nodes, "graph", [*inputs, *appended], outputs, small)
    lean = helper.make_model(bare, opset_imports=list(model.opset_import), ir_version=model.ir_version, functions=list(model.functions))
    kept = sum(tensor.ByteSize() for tensor in small)
    return SplitGraph(bytes(lean.SerializeToString(deterministic=True)), weights, kept)


def run(model: bytes, feeds: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """The only output of a graph, with whatever inputs it has of these. Raises UnsupportedModel if it cannot run on them."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        [output] = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
    except Exception as error:  # the library raises classes of its own without a common base
        raise UnsupportedModel(f"the graph cannot be run: {str(error)[:300]}") from error
    if output.dtype != np.float32 or output.ndim not in {2, 3}:
        raise UnsupportedModel(
            f"the graph gives {output.dtype} {list(output.shape)}: served is float32 [texts, width] or [texts, tokens, width]"
        )
    found: NDArray[np.float32] = output
    return found


def sample(texts: int, tokens: int, vocabulary: int) -> dict[str, NDArray[np.generic]]:
    """Token ids as a run brings them, the first of each row a prompt's."""
    ids = np.random.default_rng((texts, tokens)).integers(vocabulary // 8, vocabulary, (texts, tokens))
    mask = np.ones_like(ids)
    mask[:, 0] = tokens == 1
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids), POOLING_MASK: mask}


def difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(actual - expected).max() / max(1.0, float(np.abs(expected).max())))


def _nodes(nodes: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and functions too. Raises UnsupportedModel for operators of other domains."""
    local = {function.domain for function in functions}
    for node in [*nodes, *(node for function in functions for node in function.node)]:
        if node.domain not in _DOMAINS | local:
            raise UnsupportedModel(
                f"the graph has the operator {node.domain[:64]}::{node.op_type[:64]}: only ONNX's and ONNX Runtime's own are served"
            )
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(graph.node, ())


def _check_external(path: Path, model: onnx.ModelProto) -> None:
    """External data must lie beside the model."""
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        if "/" in location or "\\" in location or location.startswith(".") or not (path.parent / location).is_file():
            raise BadPackage(f"{path.name} keeps the tensor '{tensor.name[:64]}' in {location[:64]!r}, which is no file beside it")


def _check_inputs(path: Path, model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    for value in inputs:
        kind = value.type.tensor_type
        if value.name not in _FOREIGN_INPUTS or kind.elem_type != TensorProto.INT64 or len(kind.shape.dim) != 2:
            raise UnsupportedModel(
                f"{path.name} asks for the input {value.name[:64]!r}: served are {', '.join(_FOREIGN_INPUTS)}, INT64 [texts, tokens]"
            )
    if all(value.name != "input_ids" for value in inputs):
        raise UnsupportedModel(f"{path.name} has no input 'input_ids'")
