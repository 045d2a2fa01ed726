"""A worker process with the models that live in it, and the one that runs now."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from flatshare.instance.workers.process import WorkerProcess
from flatshare.instance.workers.records import Model
from flatshare.policy.workers import WorkerLoad

_FADES_S = 10.0


class Seat:
    """One worker runs one thing at a time: whoever wants it to do something waits for its turn, first come first served."""

    def __init__(self, worker: WorkerProcess, on_free: Callable[[], None]) -> None:
        self.worker = worker
        self._on_free = on_free
        self.running: Model | None = None
        self.loaded: set[Model] = set()
        self.base_bytes = 0
        """Private memory after the last load: what is beyond it has grown while models ran."""
        self._turn = asyncio.Lock()
        self._busy_s = 0.0
        self._seen_s = asyncio.get_running_loop().time()

    @property
    def is_alive(self) -> bool:
        return self.worker.end is None

    @property
    def is_busy(self) -> bool:
        return self._turn.locked()

    @property
    def growth_bytes(self) -> int:
        return self.worker.anonymous_bytes - self.base_bytes if self.base_bytes else 0

    @asynccontextmanager
    async def turn(self, model: Model) -> AsyncIterator[None]:
        """Nothing else runs in this worker meanwhile. It may be dead by the time the turn comes."""
        try:
            async with self._turn:
                self.running = model
                started_s = asyncio.get_running_loop().time()
                try:
                    yield
                finally:
                    self.running = None
                    self._add_busy(started_s)
        finally:
            self._on_free()

    async def until_idle(self) -> None:
        async with self._turn:
            return

    def load(self, homes: int) -> WorkerLoad:
        """For the policy."""
        return WorkerLoad(self.worker.name, homes, self.is_busy, self._busy_s)

    def _add_busy(self, started_s: float) -> None:
        now = asyncio.get_running_loop().time()
        self._busy_s = self._busy_s * max(0.0, 1 - (now - self._seen_s) / _FADES_S) + now - started_s
        self._seen_s = now
