"""The engine of generating models: sessions and vocabularies shared by architecture, weights mapped, one stepper for all.

A resident model costs its bindings, as with the mapped engine. What is written meanwhile costs keys and values, from a memory
that is entered in the books as a whole when the first such model loads.
"""

import itertools
import threading
import weakref
from pathlib import Path

import onnxruntime as ort

from flatshare.core.errors import BadPackage
from flatshare.core.ids import Digest
from flatshare.core.spec import GenerationSpec, StoredModel
from flatshare.instance.backends.base import Footprint
from flatshare.instance.backends.generate.llama import LlamaNetwork
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.backends.generate.network import Network, Steps
from flatshare.instance.backends.generate.session import GraphSession, Weights
from flatshare.instance.backends.generate.stepper import Stepper
from flatshare.instance.backends.generate.t5 import T5Network
from flatshare.instance.backends.generate.vocabulary import Vocabulary
from flatshare.instance.backends.sessions import share_one_arena
from flatshare.package.graphs import steps
from flatshare.store.mapping import MapPool

_OWN_BASE_BYTES = 100_000  # of one model's Python and C++ objects: measured, see docs/benchmarks.md
_OWN_BYTES_PER_TENSOR = 2_500
_SESSION_BYTES = 7_500_000
_VOCABULARY_BYTES = 16_000_000


class _Sessions:
    """An architecture's graphs."""

    def __init__(self, blob: bytes, names: list[str], threads: int) -> None:
        graphs = steps.unpack(blob)
        made: dict[bytes, GraphSession] = {}
        for graph in (graphs.prefill, graphs.single, graphs.several):
            if graph not in made:
                made[graph] = GraphSession(graph, names, threads=threads)
        self.prefill, self.single, self.several = made[graphs.prefill], made[graphs.single], made[graphs.several]


class GenerateBackend:
    """Loads models that write."""

    def __init__(self, *, threads: int, cache_bytes: int, max_jobs: int) -> None:
        share_one_arena()
        self._threads = threads
        self._cache_bytes = cache_bytes
        self._maps = MapPool()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._sessions: weakref.WeakValueDictionary[Digest, _Sessions] = weakref.WeakValueDictionary()
        self._vocabularies: weakref.WeakValueDictionary[Digest, Vocabulary] = weakref.WeakValueDictionary()
        self.stepper = Stepper(cache_bytes, max_jobs=max_jobs)

    def footprint(self, stored: StoredModel) -> Footprint:
        manifest = stored.manifest
        shared = {
            "generation caches": self._cache_bytes,
            f"session {manifest.graph}": _SESSION_BYTES,
            f"workspaces {manifest.graph}": manifest.workspace_bytes,
            f"vocabulary {manifest.tokenizer}": _VOCABULARY_BYTES,
        }
        return Footprint(_OWN_BASE_BYTES + _OWN_BYTES_PER_TENSOR * len(manifest.tensors), shared)

    def load(self, stored: StoredModel) -> GeneratingModel:
        spec = stored.manifest.generation
        if spec is None:
            raise BadPackage("the model's manifest says nothing of generation: import it anew")
        with self._lock:
            sessions, vocabulary = self._shared(stored)
        network = _network(stored.manifest.family, spec, sessions, self._weights(stored))
        number = next(self._numbers)
        model = GeneratingModel(number, spec, network, vocabulary, self.stepper, sessions)
        weakref.finalize(model, self.stepper.forget_model, number).atexit = False
        return model

    def shrink(self) -> None:
        """The mapped engine shrinks the arena and the heap for all."""

    def statistics(self) -> dict[str, int]:
        done = self.stepper.statistics()
        return {
            "generation_steps": done.steps,
            "generation_rows_stepped": done.rows_stepped,
            "generation_row_bytes": done.row_bytes,
            "generation_session_bytes": done.session_bytes,
            "generation_sessions": done.sessions,
            "generation_jobs": done.jobs,
        }

    def close(self) -> None:
        self.stepper.close()

    def _shared(self, stored: StoredModel) -> tuple[_Sessions, Vocabulary]:
        manifest = stored.manifest
        sessions = self._sessions.get(manifest.graph)
        if sessions is None:
            names = [tensor.name for tensor in manifest.tensors]
            sessions = self._sessions[manifest.graph] = _Sessions(Path(stored.graph_path).read_bytes(), names, self._threads)
        vocabulary = self._vocabularies.get(manifest.tokenizer)
        if vocabulary is None:
            vocabulary = self._vocabularies[manifest.tokenizer] = Vocabulary(Path(stored.tokenizer_path))
        return sessions, vocabulary

    def _weights(self, stored: StoredModel) -> Weights:
        weights = {}
        for tensor in stored.manifest.tensors:
            place = stored.places[tensor.digest]
            pack = self._maps.get(Path(stored.packs_dir) / f"{place.pack}.pack")
            view = pack.int8 if tensor.dtype == "I8" else pack.tensor
            weights[tensor.name] = ort.OrtValue.ortvalue_from_numpy(view(place.offset, tensor.shape, tensor.size_bytes))
        return weights


def _network(family: str, spec: GenerationSpec, sessions: _Sessions, weights: Weights) -> Network:
    if family == "t5":
        return T5Network(spec, sessions.prefill, Steps.bound(sessions.single, sessions.several, weights), weights)
    return LlamaNetwork(spec, sessions.prefill, Steps.bound(sessions.single, sessions.several, weights), weights)
