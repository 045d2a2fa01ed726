"""Prepacked copies: a model's weights in the layout of OpenVINO's kernels, beside the mapped ones, for hot models with short texts.

It reads our generated graph as it is. Weights become constants that point into the mapped packs, so what is only looked up (embeddings)
stays mapped, and what is multiplied is packed into private memory. Measured in docs/decisions/0087-prepacked-copies.md.
"""

import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from flatshare.telemetry.log import get_logger

log = get_logger("prepacked")
SHORT_TOKENS = 64
"""Of all texts of a run together. Beyond it the kernels pack the weights once more, in another layout, and gain less."""
LIBRARY_BYTES = 30_000_000
_BASE_BYTES = 24_000_000  # kernels compiled for the shapes that occur; with 1.1 times the weights an upper bound from 10 to 340 MB of them
_PACKED_SHARE = 1.1
_LOOKED_UP = {"Gather", "EmbedLayerNormalization"}
_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,  # each copy would pin its stream to the first core, and all of them to the same one
}


def is_available() -> bool:
    """Is OpenVINO installed? It is loaded with the first copy."""
    return find_spec("openvino") is not None


class Copier:
    """Makes copies. One per process: the library's threads and kernels are shared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._core: Any = None

    def prepare(self) -> None:
        """Load the library, which takes a third of a second. Raises ImportError."""
        openvino: Any = import_module("openvino")
        with self._lock:
            if self._core is None:
                self._core = openvino.Core()

    def copy(self, graph_path: Path, weights: Mapping[str, ort.OrtValue]) -> "Copy":
        """Takes a tenth of a second and more of one core. Raises RuntimeError, in OpenVINO's words, for a graph that it does not take."""
        openvino: Any = import_module("openvino")
        self.prepare()
        graph = self._core.read_model(str(graph_path))
        for parameter in graph.get_parameters():
            weight = weights.get(parameter.output(0).any_name)
            if weight is not None:
                constant = openvino.op.Constant(weight.numpy(), shared_memory=True)
                parameter.output(0).replace(constant.output(0))
                graph.remove_parameter(parameter)
        return Copy(self._core.compile_model(graph, "CPU", _OPTIONS).create_infer_request())


class Copy:
    """One model's. It serves one run at a time: whoever finds it busy has the mapped weights."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32] | None:
        """As `Architecture.run`; None if it is busy, closed, or has just failed, which closes it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._request is None:
                return None
            output: NDArray[np.float32] = self._request.infer(feeds)[0]
            return output
        except RuntimeError as error:
            log.error("prepacked_run_failed", error=str(error), consequence="the mapped weights answer")
            self._request = None
            return None
        finally:
            self._lock.release()

    def close(self) -> None:
        """Waits for the run that is under way; its memory is free when this returns."""
        with self._lock:
            self._request = None


def copy_bytes(graph_path: Path, sizes: Mapping[str, int]) -> int:
    """Private memory that a copy takes, at most, besides the library's: of weights of these sizes in bytes by name."""
    graph = onnx.load(graph_path, load_external_data=False).graph
    looked_up = {name for node in graph.node if node.op_type in _LOOKED_UP for name in node.input}
    packed = sum(size for name, size in sizes.items() if name not in looked_up)
    return int(_PACKED_SHARE * packed) + _BASE_BYTES


def probe(inputs: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """A text of thirty tokens, to try a copy with."""
    ids = np.arange(30, dtype=np.int64)[None, :] % 8 + 2  # any vocabulary has these
    ready = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    return {name: ready[name] for name in inputs}
