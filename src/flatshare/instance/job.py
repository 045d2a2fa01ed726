"""Step 6a: one piece of work, on its way from the event loop to a worker thread and back."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import TooLate
from flatshare.core.ids import NOBODY, Tenant
from flatshare.instance import batching
from flatshare.instance.backends.base import LoadedModel, StopSign
from flatshare.instance.batching import Likeness

T = TypeVar("T")
Deliver = Callable[["Run[Any]"], None]
"""What hands an outcome on, called on the worker before the loop hears of it; what it raises is the job's failure."""


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """What came of a piece of work, how long it ran, and how long it had waited for a thread."""

    result: T
    seconds: float
    waited_s: float
    share: float = 1.0
    """How much of the run was this piece's: less than all if others shared it."""


@dataclass(frozen=True, slots=True)
class Mergeable:
    """Work that may be run together with its like, in one call of the model, if it has a likeness."""

    model: LoadedModel
    call: InferCall

    @property
    def likeness(self) -> Likeness | None:
        """Looked at only where others wait: a lone caller does not pay for it."""
        return batching.likeness(self.model.signature, self.call)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whose work it is, how much, and until when."""

    tenant: Tenant = NOBODY
    run_s: float = 0.001
    """Expected."""
    units: float = 1.0
    deadline_s: float | None = None
    """By the event loop's clock, which is time.monotonic."""
    mergeable: Mergeable | None = field(default=None, repr=False)


PLAIN = Ticket()


class Job:
    """Made on the loop, run on a worker."""

    __slots__ = ("_deliver", "_is_over", "_loop", "_over", "_stop", "_work", "asked_s", "done", "has_begun", "predicted_wait_s", "ticket")

    def __init__(self, work: Callable[[], Any], ticket: Ticket, stop: StopSign | None, deliver: Deliver | None = None) -> None:
        self.asked_s = time.perf_counter()
        self._work: Callable[[], Any] | None = work
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._deliver = deliver
        self.ticket = ticket
        self.done: asyncio.Future[Run[Any]] = self._loop.create_future()
        self.has_begun = False
        self.predicted_wait_s = 0.0
        """Until its turn, when it was let in; zero if nobody had to know."""
        self._is_over = False
        self._over: asyncio.Future[None] | None = None

    # On the loop.

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

    # On a worker.

    def waited_s(self) -> float:
        return time.perf_counter() - self.asked_s

    @property
    def stop(self) -> StopSign | None:
        """What the work looks at between its parts, if it has some."""
        return self._stop

    @property
    def away_s(self) -> float:
        """How long others ran in its midst."""
        return 0.0 if self._stop is None else self._stop.away_s

    @property
    def is_wanted(self) -> bool:
        return self._work is not None

    def begin(self) -> None:
        """From here on a rider who leaves waits until it is over."""
        self.has_begun = True

    def run(self) -> None:
        """Every rider gets an answer, whatever the engine does."""
        work, self._work = self._work, None  # nothing of the model may outlive the run
        if work is None:
            self._loop.call_soon_threadsafe(self._end)
            return
        started = time.perf_counter()
        try:
            result = work()
            outcome = Run(result, time.perf_counter() - started - self.away_s, started + self.away_s - self.asked_s)
        except BaseException as error:  # noqa: BLE001  # the worker's main; a panic in the tokenizers' Rust is no Exception
            self.fail(error)
            return
        self.succeed(outcome)

    def expire(self) -> None:
        """Its turn has come, and its answer would be too late."""
        self._work = None
        self.fail(TooLate("the deadline passed while the request waited for its turn: call again later, or allow more time"))

    def fail(self, error: BaseException) -> None:
        failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        self._loop.call_soon_threadsafe(self._fail, failure.with_traceback(None))

    def succeed(self, outcome: Run[InferResult]) -> None:
        """Of its own run, or its part of one that it shared."""
        self._work = None
        try:
            if self._deliver is not None:
                self._deliver(outcome)
        except Exception as error:  # noqa: BLE001  # the worker's main, as in `run`: the rider gets it
            self.fail(error)
            return
        self._loop.call_soon_threadsafe(self._succeed, outcome)

    # Back on the loop.

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


def run_together(jobs: Sequence[Job], stop: StopSign) -> None:
    """One call for all of them; if it fails, each alone, so that one rider's mistake is not the others'. `stop` is only to give way."""
    mergeables = [job.ticket.mergeable for job in jobs]
    assert all(mergeables), "merged what cannot be. This is a bug."
    calls = [mergeable.call for mergeable in mergeables if mergeable]
    model = mergeables[0].model if mergeables[0] else None
    assert model is not None
    started = time.perf_counter()
    try:
        result = model.run(batching.merged(calls), stop)
        parts = batching.split(result, [len(call.inputs["text"].data) for call in calls])
    except BaseException:  # noqa: BLE001  # whatever it was, each one hears of its own in its own run
        for job in jobs:
            job.run()
        return
    seconds, units = time.perf_counter() - started - stop.away_s, sum(job.ticket.units for job in jobs)
    for job, part in zip(jobs, parts, strict=True):
        job.succeed(Run(part, seconds, started - job.asked_s, job.ticket.units / units))
