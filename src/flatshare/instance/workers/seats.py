"""A worker process with the models that live in it, and the one that runs now."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from flatshare.instance.workers.process import WorkerProcess
from flatshare.instance.workers.records import Model


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
    async def turn(self, model: Model, *, is_run: bool = False) -> AsyncIterator[None]:
        """Nothing else runs in this worker meanwhile. It may be dead by the time the turn comes."""
        try:
            async with self._turn:
                self.running = model
                try:
                    with model.work.going_on(is_run=is_run):
                        yield
                finally:
                    self.running = None
        finally:
            self._on_free()

    async def until_idle(self) -> None:
        async with self._turn:
            return
