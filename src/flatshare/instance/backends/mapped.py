"""The mapped engine: one ONNX Runtime session per architecture, and each model only a set of views of its mapped weights.

The graph's weights are inputs, not initializers. So a cold start maps a file and binds 100 pointers (2 ms); no session is made,
nothing is copied, and a resident model costs about 0.15 MB of private memory (docs/decisions/0002-weights-as-inputs.md).
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput, UnsupportedModel
from flatshare.core.ids import Digest
from flatshare.core.signature import Signature, Task
from flatshare.core.spec import POOLING_MASK, TOKENS_PER_RUN, ModelManifest, StoredModel
from flatshare.instance.backends import prepacked
from flatshare.instance.backends.base import Footprint, Packable, StopSign
from flatshare.instance.backends.encoder import Row, TextEncoder
from flatshare.instance.backends.prepacked import Copier, Copy
from flatshare.instance.backends.sessions import Architecture, Shrinker, share_one_arena
from flatshare.instance.backends.tasks.base import TextTask
from flatshare.instance.backends.tasks.classification import Classification
from flatshare.instance.backends.tasks.embedding import Embedding
from flatshare.instance.backends.tasks.ranking import Ranking
from flatshare.instance.backends.tasks.token_classification import TokenClassification
from flatshare.policy.promote import Trial
from flatshare.store.mapping import MapPool

_OWN_BASE_BYTES = 40_000  # of one model's Python and C++ objects: measured, see docs/benchmarks.md
_OWN_BYTES_PER_TENSOR = 1_500
_SESSION_BYTES = 2_500_000
_TOKENIZER_BYTES = 7_000_000
_TASKS: Mapping[Task, Callable[[ModelManifest, TextEncoder], TextTask]] = {
    Task.EMBEDDING: Embedding,
    Task.CLASSIFICATION: Classification,
    Task.TOKEN_CLASSIFICATION: TokenClassification,
    Task.RANKING: Ranking,
}


class MappedBackend:
    """Sessions and tokenizers live as long as a model that uses them, by weak reference."""

    def __init__(self, *, concurrent_runs: int) -> None:
        self._concurrent_runs = concurrent_runs
        share_one_arena()
        self._maps = MapPool()
        self._lock = threading.Lock()
        self._architectures: weakref.WeakValueDictionary[Digest, Architecture] = weakref.WeakValueDictionary()
        self._tokenizers: weakref.WeakValueDictionary[Digest, TextEncoder] = weakref.WeakValueDictionary()
        self._shrinker = Shrinker()
        self._copier = Copier()

    def footprint(self, stored: StoredModel) -> Footprint:
        manifest = stored.manifest
        shared = {
            f"session {manifest.graph}": _SESSION_BYTES + 2 * Path(stored.graph_path).stat().st_size,  # what weights a foreign graph keeps
            f"workspaces {manifest.graph}": self._concurrent_runs * manifest.workspace_bytes,
            f"tokenizer {manifest.tokenizer}": _TOKENIZER_BYTES,
        }
        return Footprint(_OWN_BASE_BYTES + _OWN_BYTES_PER_TENSOR * len(manifest.tensors), shared)

    def load(self, stored: StoredModel) -> "MappedModel":
        architecture = self._architecture(stored)
        task = _TASKS[stored.manifest.task](stored.manifest, self._tokenizer(stored))
        return MappedModel(architecture, task, self._weights(stored, architecture), self._copier)

    def shrink(self) -> None:
        """Give unused arena chunks and freed heap back to the kernel."""
        self._shrinker.run()

    def statistics(self) -> dict[str, int]:
        return {"maps": len(self._maps), "sessions": len(self._architectures), "tokenizers": len(self._tokenizers)}

    def _architecture(self, stored: StoredModel) -> Architecture:
        with self._lock:
            known = self._architectures.get(stored.manifest.graph)
            if known is None:
                known = self._architectures[stored.manifest.graph] = Architecture(Path(stored.graph_path))
            return known

    def _tokenizer(self, stored: StoredModel) -> TextEncoder:
        with self._lock:
            known = self._tokenizers.get(stored.manifest.tokenizer)
            if known is None:
                known = self._tokenizers[stored.manifest.tokenizer] = TextEncoder(Path(stored.tokenizer_path))
            return known

    def _weights(self, stored: StoredModel, architecture: Architecture) -> list[ort.OrtValue]:
        """In the order in which the graph asks for them."""
        tensors = {tensor.name: tensor for tensor in stored.manifest.tensors}
        weights = []
        for name in architecture.weight_names:
            tensor = tensors[name]
            place = stored.places[tensor.digest]
            pack = self._maps.get(Path(stored.packs_dir) / f"{place.pack}.pack")
            weights.append(ort.OrtValue.ortvalue_from_numpy(pack.tensor(place.offset, tensor.shape, tensor.size_bytes)))
        return weights


class MappedModel(Packable):
    """One model: its weights bound to its architecture's session. Keeps little else, since there are many."""

    __slots__ = ("__weakref__", "_architecture", "_bindings", "_copier", "_copy", "_task", "_weights", "short_runs")

    def __init__(self, architecture: Architecture, task: TextTask, weights: list[ort.OrtValue], copier: Copier) -> None:
        self._architecture = architecture
        self._task = task
        self._weights = weights  # the bindings point into them
        self._bindings: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._copier = copier
        self._copy: Copy | None = None
        self.short_runs = 0

    @property
    def signature(self) -> Signature:
        return self._task.signature

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        """Tokenise, run texts of equal length together, and put the answers back in order."""
        prepared = self._task.prepare(call)
        rows = prepared.rows
        if not all(len(row.ids) for row in rows):
            raise BadInput("a text has no tokens, and this model adds none: send at least one word")
        outputs: list[NDArray[np.float32]] = [_NOTHING] * len(rows)
        groups = list(equal_length_runs([len(row.ids) for row in rows], TOKENS_PER_RUN))
        for number, group in enumerate(groups):
            if stop is not None:
                stop.between_parts(len(groups) - number)
            for index, output in zip(group, self._forward([rows[i] for i in group]), strict=True):
                outputs[index] = output
        remarks = {"tokens": tuple(len(row.ids) for row in rows), "truncated": tuple(i for i, row in enumerate(rows) if row.is_cut)}
        return InferResult(self._task.answer(call, prepared, outputs), remarks)

    def _forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The graph's output for rows of equal length."""
        feeds = _feeds(rows, self._architecture.run_inputs)
        if feeds["input_ids"].size <= prepacked.SHORT_TOKENS:
            self.short_runs += 1
            copy = self._copy
            if copy is not None and (output := copy.run(feeds)) is not None:
                return output
        return self._forward_mapped(feeds)

    def _forward_mapped(self, feeds: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """A binding serves one run at a time, so each concurrent run has its own."""
        try:
            binding = self._bindings.get_nowait()
        except queue.Empty:
            binding = self._architecture.bind(self._weights)
        output = self._architecture.run(binding, feeds)
        self._bindings.put(binding)
        return output

    # A prepacked copy.

    @property
    def architecture(self) -> str:
        return self._architecture.path.name

    @property
    def has_copy(self) -> bool:
        return self._copy is not None and self._copy.is_open

    def copy_footprint(self) -> Footprint:
        sizes = {name: weight.tensor_size_in_bytes() for name, weight in self.named_weights().items()}
        return Footprint(prepacked.copy_bytes(self._architecture.path, sizes), {"OpenVINO": prepacked.LIBRARY_BYTES})

    def make_copy(self) -> Trial:
        try:
            self._copier.prepare()
            began_s = time.perf_counter()
            copy = self._copier.copy(self._architecture.path, self.named_weights())
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]  # a report of many lines ends with its summary
            raise UnsupportedModel(f"OpenVINO does not take this graph: {reason}") from error
        trial = self._try(copy, time.perf_counter() - began_s)
        self._copy = copy
        return trial

    def drop_copy(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.close()

    def named_weights(self) -> dict[str, ort.OrtValue]:
        """By the graph's names."""
        return dict(zip(self._architecture.weight_names, self._weights, strict=True))

    def _try(self, copy: Copy, build_s: float) -> Trial:
        """The quickest of some runs of both, in turns: others work on the same cores. Raises UnsupportedModel if answers differ."""
        feeds = prepacked.probe(self._architecture.run_inputs)
        took_s: dict[str, list[float]] = {"mapped": [], "copy": []}
        for _ in range(_TRIAL_RUNS):
            began_s = time.perf_counter()
            expected = self._forward_mapped(feeds)
            middle_s = time.perf_counter()
            found = copy.run(feeds)
            if found is None:
                raise UnsupportedModel("OpenVINO does not run this graph: the log says why")
            took_s["mapped"].append(middle_s - began_s)
            took_s["copy"].append(time.perf_counter() - middle_s)
            furthest = np.abs(found - expected).max()
            if not furthest <= _TOLERANCE * max(1.0, np.abs(expected).max()):
                raise UnsupportedModel(f"the copy answers otherwise than the mapped weights, by up to {furthest:.1e}")
        return Trial(min(took_s["mapped"]), min(took_s["copy"]), build_s)


_TRIAL_RUNS, _TOLERANCE = 8, 1e-4
_NOTHING = np.empty(0, np.float32)


def _feeds(rows: Sequence[Row], wanted: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Only what the graph asks for. Nothing is padded, so an attention mask is all ones."""
    ids = np.stack([row.ids for row in rows])
    feeds = {"input_ids": ids}
    if "token_type_ids" in wanted:
        feeds["token_type_ids"] = np.stack([row.segments for row in rows])
    if "attention_mask" in wanted:
        feeds["attention_mask"] = np.ones_like(ids)
    if POOLING_MASK in wanted:
        feeds[POOLING_MASK] = np.ones_like(ids)
        for mask, row in zip(feeds[POOLING_MASK], rows, strict=True):
            mask[: row.prompt_tokens] = 0
    return feeds


def equal_length_runs(lengths: list[int], tokens_per_run: int) -> Iterator[list[int]]:
    """Indices of texts that run together: equal length, so nothing is padded, and at most `tokens_per_run` tokens (or one text)."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    for length, indices in sorted(groups.items()):
        step = max(1, tokens_per_run // length)
        for start in range(0, len(indices), step):
            yield indices[start : start + step]
