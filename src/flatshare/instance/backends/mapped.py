"""The mapped engine: one ONNX Runtime session per architecture, and each model only a set of views of its mapped weights.

The graph's weights are inputs, not initializers. So a cold start maps a file and binds 100 pointers (2 ms); no session is made,
nothing is copied, and a resident model costs about 0.15 MB of private memory (docs/decisions/0002-weights-as-inputs.md).
"""

import ctypes
import gc
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import Abandoned, BadInput
from flatshare.core.ids import Digest
from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.core.spec import ModelManifest, StoredModel
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import Footprint
from flatshare.store.mapping import MapPool

_OWN_BASE_BYTES = 40_000  # of one model's Python and C++ objects: measured, see docs/benchmarks.md
_OWN_BYTES_PER_TENSOR = 1_500
_SESSION_BYTES = 2_500_000
_TOKENIZER_BYTES = 7_000_000
_UNSTABLE_TOKENS = 128  # at the end of a prefix, where a word may have been cut: WordPiece looks at 100 characters of a word
TOKENS_PER_RUN = 512  # texts of equal length share a run up to this many tokens, so that the workspace stays that of one long text
MAX_TEXTS = 4096
_INPUT, _OUTPUT = "input_ids", "embedding"


class MappedBackend:
    """Sessions and tokenizers live as long as a model that uses them, by weak reference."""

    def __init__(self, *, concurrent_runs: int) -> None:
        self._concurrent_runs = concurrent_runs
        _share_one_arena()
        self._maps = MapPool()
        self._lock = threading.Lock()
        self._architectures: weakref.WeakValueDictionary[Digest, _Architecture] = weakref.WeakValueDictionary()
        self._tokenizers: weakref.WeakValueDictionary[Digest, _TextEncoder] = weakref.WeakValueDictionary()
        self._shrinker = _Shrinker()

    def footprint(self, stored: StoredModel) -> Footprint:
        manifest = stored.manifest
        shared = {
            f"session {manifest.graph}": _SESSION_BYTES,
            f"workspaces {manifest.graph}": self._concurrent_runs * manifest.workspace_bytes,
            f"tokenizer {manifest.tokenizer}": _TOKENIZER_BYTES,
        }
        return Footprint(_OWN_BASE_BYTES + _OWN_BYTES_PER_TENSOR * len(manifest.tensors), shared)

    def load(self, stored: StoredModel) -> "MappedModel":
        architecture = self._architecture(stored)
        tokenizer = self._tokenizer(stored)
        return MappedModel(architecture, tokenizer, self._weights(stored, architecture), stored.manifest)

    def shrink(self) -> None:
        """Give unused arena chunks and freed heap back to the kernel (0.8 MB stay of the arena)."""
        gc.collect()
        self._shrinker.run()
        _trim_heap()

    def statistics(self) -> dict[str, int]:
        return {"maps": len(self._maps), "sessions": len(self._architectures), "tokenizers": len(self._tokenizers)}

    def _architecture(self, stored: StoredModel) -> "_Architecture":
        with self._lock:
            known = self._architectures.get(stored.manifest.graph)
            if known is None:
                known = self._architectures[stored.manifest.graph] = _Architecture(Path(stored.graph_path).read_bytes())
            return known

    def _tokenizer(self, stored: StoredModel) -> "_TextEncoder":
        with self._lock:
            known = self._tokenizers.get(stored.manifest.tokenizer)
            if known is None:
                known = self._tokenizers[stored.manifest.tokenizer] = _TextEncoder(Path(stored.tokenizer_path))
            return known

    def _weights(self, stored: StoredModel, architecture: "_Architecture") -> list[ort.OrtValue]:
        """In the order in which the graph asks for them."""
        tensors = {tensor.name: tensor for tensor in stored.manifest.tensors}
        weights = []
        for name in architecture.weight_names:
            tensor = tensors[name]
            place = stored.places[tensor.digest]
            pack = self._maps.get(Path(stored.packs_dir) / f"{place.pack}.pack")
            weights.append(ort.OrtValue.ortvalue_from_numpy(pack.tensor(place.offset, tensor.shape, tensor.size_bytes)))
        return weights


class MappedModel:
    """One model: its weights bound to its architecture's session. Keeps little else, since there are many."""

    __slots__ = ("__weakref__", "_architecture", "_bindings", "_encoder", "_is_lowercased", "_max_tokens", "_weights", "_width")

    def __init__(
        self, architecture: "_Architecture", encoder: "_TextEncoder", weights: list[ort.OrtValue], manifest: ModelManifest
    ) -> None:
        self._architecture = architecture
        self._encoder = encoder
        self._weights = weights  # the bindings point into them
        self._width = manifest.width
        self._max_tokens = manifest.max_tokens
        self._is_lowercased = manifest.is_lowercased
        self._bindings: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def signature(self) -> Signature:
        return _sentence_encoder(self._width)

    def run(self, call: InferCall, stop: threading.Event | None = None) -> InferResult:
        """Tokenise, run texts of equal length together, and put the rows back in order."""
        texts = call.inputs["text"].texts()
        if len(texts) > MAX_TEXTS:
            raise BadInput(f"{len(texts)} texts in one call: at most {MAX_TEXTS} are accepted, split the call")
        rows, truncated = self._encoder.encode(texts, self._max_tokens, is_lowercased=self._is_lowercased)
        if not all(len(row) for row in rows):
            raise BadInput("a text has no tokens, and this model adds none: send at least one word")
        vectors = np.empty((len(rows), self._width), np.float32)
        for group in equal_length_runs([len(row) for row in rows], TOKENS_PER_RUN):
            if stop is not None and stop.is_set():
                raise Abandoned("the caller has left")
            vectors[group] = self._forward(np.stack([rows[i] for i in group]))
        remarks = {"tokens": tuple(len(row) for row in rows), "truncated": truncated}
        return InferResult((Tensor.of(_OUTPUT, vectors),), remarks)

    def _forward(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """From ids [texts, tokens] to [texts, width]. A binding serves one run at a time, so each concurrent run has its own."""
        try:
            binding = self._bindings.get_nowait()
        except queue.Empty:
            binding = self._architecture.bind(self._weights)
        output = np.empty((len(ids), self._width), np.float32)
        self._architecture.run(binding, ids, output)
        self._bindings.put(binding)
        return output


@lru_cache(maxsize=64)
def _sentence_encoder(width: int) -> Signature:
    texts, vectors = TensorInfo("text", "BYTES", (-1,)), TensorInfo(_OUTPUT, "FP32", (-1, width))
    return Signature(Task.EMBEDDING, "flatshare_mapped", (texts,), (vectors,))


class _Architecture:
    """An ONNX Runtime session that holds no weights."""

    def __init__(self, graph: bytes) -> None:
        self._session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
        self.weight_names = tuple(value.name for value in self._session.get_inputs() if value.name != _INPUT)

    def bind(self, weights: list[ort.OrtValue]) -> Any:
        binding = self._session.io_binding()
        for name, weight in zip(self.weight_names, weights, strict=True):
            binding.bind_ortvalue_input(name, weight)
        return binding

    def run(self, binding: Any, ids: NDArray[np.int64], output: NDArray[np.float32]) -> None:
        binding.bind_cpu_input(_INPUT, ids)
        binding.bind_output(_OUTPUT, "cpu", 0, np.float32, output.shape, output.ctypes.data)
        self._session.run_with_iobinding(binding)


class _TextEncoder:
    """A tokenizer that never pads, and says when it cuts. Shared by every model with the same tokenizer.json.

    Always through `encode_batch_fast`: it alone lets other threads run meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def encode(self, texts: Sequence[str], max_tokens: int, *, is_lowercased: bool) -> tuple[list[NDArray[np.int64]], tuple[int, ...]]:
        """Token ids of each text, and the indices of those that were cut to `max_tokens`."""
        rows, truncated = [], []
        for index, text in enumerate(texts):
            ids, is_cut = self._encode_one(text.lower() if is_lowercased else text, max_tokens)
            rows.append(np.array(ids, np.int64))
            if is_cut:
                truncated.append(index)
        return rows, tuple(truncated)

    def _encode_one(self, text: str, max_tokens: int) -> tuple[list[int], bool]:
        """Ids, and whether the text was cut. An enormous text is read only as far as its first tokens reach."""
        for characters in prefix_lengths(len(text), max_tokens):
            encoding = self._tokenizer.encode_batch_fast([text[:characters]], add_special_tokens=False)[0]
            if len(encoding) + self._special > max_tokens + _UNSTABLE_TOKENS or characters == len(text):
                break
        is_cut = len(encoding) + self._special > max_tokens or bool(text[characters:].strip())
        if is_cut:
            encoding.truncate(max_tokens - self._special)
        ids: list[int] = self._tokenizer.post_process(encoding).ids
        return ids, is_cut


def prefix_lengths(characters: int, max_tokens: int) -> Iterator[int]:
    """How much of a text to tokenise, in growing steps: all of a usual one, 256 characters per token of an absurd one."""
    length = 32 * max_tokens
    while length < min(characters, 256 * max_tokens):
        yield length
        length *= 4
    yield min(characters, 256 * max_tokens)


class _Shrinker:
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
        self._session.run(None, {"x": np.zeros(1, np.float32)}, self._options)


def equal_length_runs(lengths: list[int], tokens_per_run: int) -> Iterator[list[int]]:
    """Indices of texts that run together: equal length, so nothing is padded, and at most `tokens_per_run` tokens (or one text)."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    for length, indices in sorted(groups.items()):
        step = max(1, tokens_per_run // length)
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def session_options() -> ort.SessionOptions:
    """One thread per run (parallelism is across requests), the shared arena, and no per-shape memory plans that would pile up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


_arena_lock = threading.Lock()
_has_arena = False


def _share_one_arena() -> None:
    """One arena for all sessions of the process, growing by what is asked for instead of by doubling."""
    global _has_arena  # noqa: PLW0603  # the arena is the process's, registered once in the library
    with _arena_lock:
        if not _has_arena:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
            _has_arena = True


def _trim_heap() -> None:
    """Freed memory stays with glibc unless asked; other C libraries have no such call, nor the need."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # parallelism is across requests, and its threads would outlive them
