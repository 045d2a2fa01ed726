"""Step 6: the worker threads, one per core. A bounded number may wait; each run is one thread of the engine."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flatshare.core.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """What came of a piece of work, and how long it ran."""

    result: T
    seconds: float


class Workbench:
    """Runs engine calls. Owned by the event loop.

    A queue and a callback instead of concurrent.futures: its two futures and their locks are a tenth of a millisecond on a cold cache.
    """

    def __init__(self, workers: int, max_waiting: int) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"engine-{n}", daemon=True) for n in range(workers)]
        self._most = workers + max_waiting
        self.in_flight = 0
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T]) -> Run[T]:
        """Raises Overloaded if too many wait already, and what `work` raises.

        A caller who leaves before its turn frees its place at once; one who leaves while its work runs, when it has run: a thread
        cannot be interrupted, and what it works on must stay lent.
        """
        if self.in_flight >= self._most:
            raise Overloaded(f"{self.in_flight} requests wait on this instance already: call again later, or add instances")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self.in_flight += 1
        self._jobs.put(job)
        try:
            outcome: Run[T] = await job.done
        except asyncio.CancelledError:
            job.is_abandoned = True
            if job.has_begun:
                await job.until_over()
            raise
        finally:
            self.in_flight -= 1
        return outcome

    def close(self) -> None:
        """Finish what runs, forget what waits."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # a worker that waits must not keep the last model alive


class _Job:
    """One piece of work, on its way from the loop to a thread and back."""

    __slots__ = ("_is_over", "_loop", "_over", "_work", "done", "has_begun", "is_abandoned")

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: "asyncio.Future[Run[Any]]") -> None:
        self._work = work
        self._loop = loop
        self.done = done
        self.has_begun = False
        self.is_abandoned = False
        self._is_over = False
        self._over: asyncio.Future[None] | None = None

    async def until_over(self) -> None:
        """For a rider who has left: until the thread has let go of what it works on."""
        if not self._is_over:
            self._over = self._loop.create_future()
            await self._over

    def run(self) -> None:
        """On a worker thread: every rider gets an answer, whatever the engine does."""
        self.has_begun = True
        if self.is_abandoned:
            return
        started = time.perf_counter()
        try:
            outcome = Run(self._work(), time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001  # the worker's main: the error belongs to the rider
            self._loop.call_soon_threadsafe(self._fail, error)
            return
        self._loop.call_soon_threadsafe(self._succeed, outcome)

    def _succeed(self, outcome: Run[Any]) -> None:
        self._end()
        if not self.done.done():
            self.done.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        self._is_over = True
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
