"""A backend without an engine, for tests of everything around it: a model answers with its digest's first bytes as numbers."""

import threading

import numpy as np

from flatshare.core.call import InferCall, InferResult
from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.core.spec import StoredModel
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import Footprint, Packable, StopSign
from flatshare.policy.promote import Trial

OWN_BYTES = 1_000
COPY_BYTES = 4_000
SHARED_BYTES = 10_000


class FakeBackend:
    """Counts what is loaded. `load` waits for `gate`, so that a test can hold a load open; `failure` is raised instead if set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.trial = Trial(0.007, 0.005, 0.15)
        """Of every prepacked copy."""
        self.copy_failure: Exception | None = None
        self.loads = 0
        self.shrinks = 0

    def footprint(self, stored: StoredModel) -> Footprint:
        return Footprint(OWN_BYTES, {f"session {stored.manifest.graph}": SHARED_BYTES})

    def load(self, stored: StoredModel) -> "FakeModel":
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.loads += 1
        return FakeModel(stored, self)

    def shrink(self) -> None:
        self.shrinks += 1

    def statistics(self) -> dict[str, int]:
        return {"loads": self.loads, "shrinks": self.shrinks}


class FakeModel(Packable):
    """Answers at once."""

    def __init__(self, stored: StoredModel, backend: FakeBackend) -> None:
        self._backend = backend
        self._graph = stored.manifest.graph
        self.short_runs = 0
        self.has_copy = False
        self._row = np.frombuffer(bytes.fromhex(stored.manifest.digest[:16]), np.uint8).astype(np.float32)

    @property
    def signature(self) -> Signature:
        return Signature(Task.EMBEDDING, "fake", (TensorInfo("text", "BYTES", (-1,)),), (TensorInfo("embedding", "FP32", (-1, 8)),))

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:  # noqa: ARG002  # it takes no time
        texts = call.inputs["text"].texts()
        vectors = Tensor.of("embedding", np.tile(self._row, (len(texts), 1)))
        return InferResult((vectors,), {"tokens": tuple(len(text.split()) for text in texts), "truncated": ()})

    @property
    def architecture(self) -> str:
        return self._graph

    def copy_footprint(self) -> Footprint:
        return Footprint(COPY_BYTES, {})

    def make_copy(self) -> Trial:
        self._backend.gate.wait()
        if self._backend.copy_failure is not None:
            raise self._backend.copy_failure
        self.has_copy = True
        return self._backend.trial

    def drop_copy(self) -> None:
        self.has_copy = False
