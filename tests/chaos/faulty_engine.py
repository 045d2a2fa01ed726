"""An instance whose models do harm when a text tells them to: the real engine, with a fuse in each model. Started by faulty_server.py."""

import ctypes
import os
import signal
import sys
import time
from functools import partial
from typing import Any

from flatshare.cli import main as cli
from flatshare.core.call import InferCall, InferResult
from flatshare.core.settings import InstanceSettings
from flatshare.core.signature import Signature
from flatshare.core.spec import StoredModel
from flatshare.instance import process
from flatshare.instance.backends.base import Backend, LoadedModel, StopSign
from flatshare.instance.backends.mapped import MappedBackend

_leaked: list[bytearray] = []


class FusedModel:
    """Answers as the model does, unless a text is a command."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

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
        return self._model.run(call, stop)


class FusedBackend(MappedBackend):
    def load(self, stored: StoredModel) -> Any:
        return FusedModel(super().load(stored))


def _engines(settings: InstanceSettings) -> Backend:
    return FusedBackend(concurrent_runs=settings.workers)


if __name__ == "__main__":
    sys.argv[0] = "flatshare"
    process.serve_until_stopped = partial(process.serve_until_stopped, engines=_engines)
    cli.main()
