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
    """What came of a piece of work, how long it ran, and how long it had waited for a thread."""

    result: T
    seconds: float
    waited_s: float


class Workbench:
    """Runs engine calls. Owned by the event loop.

    A queue and a callback instead of concurrent.futures: its two futures and their locks are a tenth of a millisecond on a cold cache.
    """

    def __init__(self, workers: int, max_waiting: int) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"engine-{n}", daemon=True) for n in range(workers)]
        self._workers = workers
        self._most = workers + max_waiting
        self.in_flight = 0
        self._is_closed = False
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """The queue: what is under way and not yet on a thread."""
        return max(0, self.in_flight - self._workers)

    async def run(self, work: Callable[[], T], stop: threading.Event | None = None) -> Run[T]:
        """Raises Overloaded if too many wait already, and what `work` raises.

        A caller who leaves before its turn frees its place at once; one who leaves while its work runs, when it has run: a thread
        cannot be interrupted, and what it works on must stay lent. `stop` is set then, for work that looks at it between its parts.
        """
        if self.in_flight >= self._most:
            raise Overloaded(f"{self.in_flight} requests wait on this instance already: call again later, or add instances")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future(), stop)
        self.in_flight += 1
        self._jobs.put(job)
        try:
            outcome: Run[T] = await job.done
        except asyncio.CancelledError:
            job.abandon()
            if job.has_begun:
                await job.until_over()
            raise
        finally:
            self.in_flight -= 1
        return outcome

    def close(self) -> None:
        """Finish what runs, forget what waits."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._is_closed:
                job.run()
            del job  # a worker that waits must not keep the last model alive


class _Job:
    """One piece of work, on its way from the loop to a thread and back."""

    __slots__ = ("_asked_s", "_is_over", "_loop", "_over", "_stop", "_work", "done", "has_begun")

    def __init__(
        self,
        work: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        done: "asyncio.Future[Run[Any]]",
        stop: threading.Event | None,
    ) -> None:
        self._asked_s = time.perf_counter()
        self._work: Callable[[], Any] | None = work
        self._loop = loop
        self._stop = stop
        self.done = done
        self.has_begun = False
        self._is_over = False
        self._over: asyncio.Future[None] | None = None

    def abandon(self) -> None:
        """The rider has left: let go of what has not begun, and ask what runs to stop."""
        if not self.has_begun:
            self._work = None
        if self._stop is not None:
            self._stop.set()

    async def until_over(self) -> None:
        """For a rider who has left: until the thread has let go of what it works on."""
        if not self._is_over:
            self._over = self._loop.create_future()
            await self._over

    def run(self) -> None:
        """On a worker thread: every rider gets an answer, whatever the engine does."""
        self.has_begun = True
        work, self._work = self._work, None  # nothing of the model may outlive the run
        if work is None:
            self._loop.call_soon_threadsafe(self._end)
            return
        started = time.perf_counter()
        try:
            outcome = Run(work(), time.perf_counter() - started, started - self._asked_s)
        except BaseException as error:  # noqa: BLE001  # the worker's main; a panic in the tokenizers' Rust is no Exception
            failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            self._loop.call_soon_threadsafe(self._fail, failure.with_traceback(None))
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
