"""An instance whose models do harm when a text tells them to: the real engine, with a fuse in each model. Started by faulty_server.py."""

import ctypes
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from flatshare.cli import main as cli
from flatshare.core.call import InferCall, InferResult
from flatshare.core.settings import InstanceSettings
from flatshare.core.signature import Signature
from flatshare.core.spec import StoredModel
from flatshare.instance import process
from flatshare.instance.backends.base import Backend, LoadedModel, StopSign
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.instance.scrub import Scrubber

SCRUB_PAUSE_S = "CHAOS_SCRUB_PAUSE_S"
"""In the environment: instead of ten seconds a pack, where a test waits for it."""
_leaked: list[bytearray] = []


class FusedModel:
    """Answers as the model does, unless a text is a command."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._marker: Path | None = None

    def __del__(self) -> None:
        """The last step of an unload, on a loader's thread."""
        if self._marker is not None:
            self._marker.touch()
            time.sleep(60)

    @property
    def signature(self) -> Signature:
        return self._model.signature

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        command, _, amount = call.inputs["text"].texts()[0].partition(" ")
        if command == "SEGFAULT":
            ctypes.string_at(0)
        elif command == "RAISE":
            raise LookupError("a bug of the engine")
        elif command == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does that has no memory left
        elif command == "HANG":
            time.sleep(float(amount))  # deaf to `stop`
        elif command == "LEAK":
            _leaked.append(bytearray(b"x") * (int(amount) << 20))
        elif command == "ALLOCATE":
            bytearray(int(amount) << 30)
        elif command == "LINGER":  # when it leaves
            self._marker = Path(amount)
        return self._model.run(call, stop)


class FusedBackend(MappedBackend):
    """Counts how many models are loaded at the same time."""

    def __init__(self, *, concurrent_runs: int) -> None:
        super().__init__(concurrent_runs=concurrent_runs)
        self._counting = threading.Lock()
        self._loading = self._most_loading = 0

    def load(self, stored: StoredModel) -> Any:
        with self._counting:
            self._loading += 1
            self._most_loading = max(self._most_loading, self._loading)
        try:
            return FusedModel(super().load(stored))
        finally:
            with self._counting:
                self._loading -= 1

    def statistics(self) -> dict[str, int]:
        return super().statistics() | {"most_loading": self._most_loading}


def _engines(settings: InstanceSettings) -> Backend:
    return FusedBackend(concurrent_runs=settings.workers)


if __name__ == "__main__":
    sys.argv[0] = "flatshare"
    process.serve_until_stopped = partial(process.serve_until_stopped, engines=_engines)
    if SCRUB_PAUSE_S in os.environ:
        setattr(process, "Scrubber", partial(Scrubber, pause_s=float(os.environ[SCRUB_PAUSE_S])))  # noqa: B010  # a class, to mypy
    cli.main()
