"""ONNX Runtime as this process uses it: sessions that hold no weights, one arena for all of them, and memory given back."""

import ctypes
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

RUN_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What a run brings, int64 [texts, tokens] each; every other input of a graph is a weight."""


class Architecture:
    """An ONNX Runtime session whose weights are bound per model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = ort.InferenceSession(path.read_bytes(), session_options(), providers=["CPUExecutionProvider"])
        names = [value.name for value in self._session.get_inputs()]
        self.weight_names = tuple(name for name in names if name not in RUN_INPUTS)
        self.run_inputs = tuple(name for name in names if name in RUN_INPUTS)
        [output] = self._session.get_outputs()
        self._output = output.name
        self._has_tokens = len(output.shape) == 3
        self._width = int(output.shape[-1])

    def bind(self, weights: Sequence[ort.OrtValue]) -> Any:
        binding = self._session.io_binding()
        for name, weight in zip(self.weight_names, weights, strict=True):
            binding.bind_ortvalue_input(name, weight)
        return binding

    def run(self, binding: Any, feeds: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """[texts, width], or [texts, tokens, width] if the graph answers for each token."""
        texts, tokens = feeds["input_ids"].shape
        output = np.empty((texts, tokens, self._width) if self._has_tokens else (texts, self._width), np.float32)
        for name in self.run_inputs:
            binding.bind_cpu_input(name, feeds[name])
        binding.bind_output(self._output, "cpu", 0, np.float32, output.shape, output.ctypes.data)
        self._session.run_with_iobinding(binding)
        return output


def session_options(*, is_prepacked: bool = False) -> ort.SessionOptions:
    """One thread per run (parallelism is across requests), the shared arena, and no per-shape memory plans that would pile up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if is_prepacked else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


_arena_lock = threading.Lock()
_has_arena = False


def share_one_arena() -> None:
    """One arena for all sessions of the process, growing by what is asked for instead of by doubling."""
    global _has_arena  # noqa: PLW0603  # the arena is the process's, registered once in the library
    with _arena_lock:
        if not _has_arena:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
            _has_arena = True


class Shrinker:
    """A graph of one node, run only to make the shared arena give back its free chunks."""

    def __init__(self) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "shrink", [value], [result])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        self._session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self) -> None:
        """Give unused arena chunks and freed heap back to the kernel (0.8 MB stay of the arena)."""
        gc.collect()
        self._session.run(None, {"x": np.zeros(1, np.float32)}, self._options)
        _trim_heap()


def _trim_heap() -> None:
    """Freed memory stays with glibc unless asked; other C libraries have no such call, nor the need."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
