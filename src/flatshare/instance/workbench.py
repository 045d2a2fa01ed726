"""Step 6: the worker threads, one per core. A bounded number may wait; each run is one thread of the engine."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flatshare.core.errors import Overloaded

T = TypeVar("T")


class Workbench:
    """Runs engine calls. Owned by the event loop."""

    def __init__(self, workers: int, max_waiting: int) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._most = workers + max_waiting
        self.in_flight = 0

    async def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result, and the seconds that it ran. Raises Overloaded if too many wait already."""
        if self.in_flight >= self._most:
            raise Overloaded(f"{self.in_flight} requests wait on this instance already: call again later, or add instances")
        self.in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _timed, work)
        finally:
            self.in_flight -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
