"""The bare engine: tokenise and run in this process, on the same store, with no server around it. What added cost is measured against."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from flatshare.core.call import InferCall
from flatshare.core.ids import ModelDigest
from flatshare.core.tensor import text_tensor
from flatshare.instance.backends.base import LoadedModel
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.store.tensors import TensorStore


@dataclass(frozen=True, slots=True)
class BareLoad:
    """What a round on the bare engine cost."""

    seconds: float
    cpu_seconds: float


class BareEngine:
    """The models of a tensor store, by artifact."""

    def __init__(self, store_dir: Path, prefix: Path) -> None:
        store = TensorStore(store_dir)
        backend = MappedBackend(concurrent_runs=2)
        self._models: dict[str, LoadedModel] = {}
        for model in store.catalog.models():
            stored = store.stored(ModelDigest(model.manifest.digest))
            assert stored is not None
            for uri in model.uris:
                self._models[uri.removeprefix(f"file://{prefix}/")] = backend.load(stored)

    def run_s(self, target: str, text: str) -> float:
        """Seconds of one tokenise + run."""
        call = _call(text)
        started = time.perf_counter()
        self._models[target].run(call)
        return time.perf_counter() - started

    def load(self, work: list[tuple[str, str]], workers: int) -> BareLoad:
        """Run (target, text) pairs on `workers` threads, one engine thread each."""
        pending = iter(work)
        lock = threading.Lock()

        def drain() -> None:
            while True:
                with lock:
                    item = next(pending, None)
                if item is None:
                    return
                self.run_s(*item)

        threads = [threading.Thread(target=drain) for _ in range(workers)]
        started, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return BareLoad(time.perf_counter() - started, time.process_time() - cpu)


def only_model_mb(store_dir: Path) -> float:
    """Resident memory in MB (10^6 bytes) of this process, once it has loaded one model and answered: a pod at its leanest."""
    store = TensorStore(store_dir)
    stored = store.stored(store.catalog.models()[0].manifest.digest)
    assert stored is not None
    MappedBackend(concurrent_runs=1).load(stored).run(_call("a short question about my order"))
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1.024e-3


def _call(text: str) -> InferCall:
    return InferCall({"text": text_tensor("text", [text])})
