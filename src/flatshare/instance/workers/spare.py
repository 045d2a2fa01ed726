"""A worker kept ready: started, and with the libraries imported that models here import, so that no request waits for that."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from flatshare.core.errors import WorkerDied
from flatshare.instance.workers.process import WorkerProcess

_WARM_S = 120.0
_LATEST_TICKS = 30


class Spare:
    """Owns at most one idle worker. `start` makes one of our own Python; workers of other environments are never spare."""

    def __init__(self, start: Callable[[], Awaitable[WorkerProcess]], *, is_on: bool) -> None:
        self._start = start
        self._is_on = is_on
        self._modules: tuple[str, ...] = ()
        self._ready: asyncio.Task[WorkerProcess] | None = None
        self._wanted_ticks: int | None = None

    @property
    def worker(self) -> WorkerProcess | None:
        """The one that is ready."""
        ready = self._ready
        return ready.result() if ready is not None and ready.done() and not ready.cancelled() and ready.exception() is None else None

    async def take(self) -> WorkerProcess:
        """The spare if there is one, else a new worker. Raises WorkerDied."""
        ready, self._ready = self._ready, None
        if ready is not None:
            with suppress(WorkerDied):
                worker = await ready
                if worker.end is None:
                    return worker
        return await self._start()

    def prepare(self, modules: tuple[str, ...]) -> None:
        """Have a worker ready soon for code that imports `modules`, besides what was asked for earlier."""
        self._modules = tuple(dict.fromkeys((*self._modules, *modules)))
        if self._is_on and self._wanted_ticks is None and (self._ready is None or (self._ready.done() and self.worker is None)):
            self._wanted_ticks = 0

    def tick(self, *, is_quiet: bool) -> None:
        """Once a second: begin when nobody is being served, since importing takes seconds of a core; at last begin anyway."""
        if self._wanted_ticks is None:
            return
        self._wanted_ticks += 1
        if is_quiet or self._wanted_ticks >= _LATEST_TICKS:
            self._wanted_ticks = None
            self._ready = asyncio.get_running_loop().create_task(self._warmed())
            self._ready.add_done_callback(_heard)

    async def close(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            with suppress(WorkerDied):
                await (await ready).stop()

    async def _warmed(self) -> WorkerProcess:
        worker = await self._start()
        if self._modules:
            await worker.ask("warm", modules=self._modules, timeout_s=_WARM_S)
        return worker


def _heard(done: "asyncio.Task[WorkerProcess]") -> None:
    """A spare that did not come up is no fault until somebody needs it."""
    if not done.cancelled():
        done.exception()
