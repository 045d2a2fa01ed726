"""ONNX Runtime sessions of generating models: one or two per architecture, shared by its models, holding no weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flatshare.instance.backends.sessions import session_options

Weights = Mapping[str, ort.OrtValue]


class GraphSession:
    """One graph. Used by one thread at a time: the stepper's."""

    def __init__(self, graph: bytes, weight_names: Sequence[str], *, threads: int) -> None:
        options = session_options()
        options.intra_op_num_threads = threads  # one step runs at a time, so it may have all cores
        # The graphs are written as they shall run: the library would turn narrow products round again (decision 0063).
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = frozenset(value.name for value in self._session.get_inputs())
        self._weight_names = [name for name in weight_names if name in self.inputs]
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def bind(self, weights: Weights) -> "Binding":
        return Binding(self._session, {name: weights[name] for name in self._weight_names})


class Binding:
    """One model's weights bound to a graph, and what a run reads and writes besides: made when it is needed, and let go when not."""

    def __init__(self, session: ort.InferenceSession, weights: Weights) -> None:
        self._session = session
        self._weights = weights
        self._made: Any = None
        self._kept: dict[str, Any] = {}

    @property
    def _binding(self) -> Any:
        if self._made is None:
            self._made = self._session.io_binding()
            for name, weight in self._weights.items():
                self._made.bind_ortvalue_input(name, weight)
        return self._made

    def input(self, name: str, array: NDArray[Any]) -> None:
        """Bind for the runs to come; the array is read where it lies."""
        self._kept[name] = array
        self._binding.bind_cpu_input(name, array)

    def cache(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Bind as `past.NAME` and `present.NAME` at the same address: the graph appends in place."""
        value = self._kept[name] = ort.OrtValue.ortvalue_from_numpy(tensor)
        self._binding.bind_ortvalue_input(f"past.{name}", value)
        self._binding.bind_ortvalue_output(f"present.{name}", value)

    def output(self, name: str, array: NDArray[np.float32]) -> None:
        self._kept[name] = array
        self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def forget(self) -> None:
        """Let go of everything but the weights: a binding of the library's keeps copies of what it was given."""
        self._made = None
        self._kept.clear()
