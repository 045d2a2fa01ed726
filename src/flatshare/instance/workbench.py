"""Step 6: the worker threads, one per core. A bounded number waits, by fair share among tenants; each run is one thread of the engine."""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import Overloaded, OverQuota, TooLate
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.settings import SharingSettings
from flatshare.instance.backends.base import LoadedModel, StopSign
from flatshare.instance.job import PLAIN, Deliver, Job, Mergeable, Run, Ticket, run_together
from flatshare.instance.paces import Paces
from flatshare.instance.under_way import UnderWay
from flatshare.policy import batch, pace
from flatshare.policy.batch import Batch, Rider
from flatshare.policy.fair import Entry, FairQueue
from flatshare.policy.pace import Load

T = TypeVar("T")
_KEEP_FOR_SHORT_S = 2.0
_SMOOTHING = 0.1


class Workbench:
    """Runs engine calls. `run` is called on the event loop.

    A job that finds a worker idle is put on its desk. Else it waits in a queue under a lock, from which the workers take for themselves:
    to be handed it by the loop would leave them idle for a turn of the loop.
    A callback instead of concurrent.futures: its two futures and their locks are a tenth of a millisecond on a cold cache.
    """

    def __init__(self, workers: int, sharing: SharingSettings) -> None:
        self._sharing = sharing
        self._workers = workers
        self._lock = threading.Lock()  # over the queue and what is under way
        self._queue: FairQueue[Job] = FairQueue()
        self._under_way = UnderWay(workers, sharing.queue.long_run_ms / 1e3)
        self._short_s = float("-inf")
        self._visitors = _Visitors()
        self._paces = Paces()
        self._drift = 1.0
        self._shared_run_s = 0.0
        self._desks = [queue.SimpleQueue[list[Job]]() for _ in range(workers)]  # an empty list is a call to look at the queue
        # The worker that ran last is the first to be called: its core's caches still hold what a run touches, and the other cores'
        # still hold the rest of the way. One queue for all would take turns, and wake a second worker with each job (0082).
        self._idle = list(range(workers))
        self._threads = [threading.Thread(target=self._work, args=(n,), name=f"engine-{n}", daemon=True) for n in range(workers)]
        self.in_flight = 0
        self.merged = 0
        """Requests that shared a run."""
        self._is_closed = False
        self._here = threading.local()
        for thread in self._threads:
            thread.start()

    async def run(
        self, work: Callable[[], T], stop: StopSign | None = None, ticket: Ticket = PLAIN, deliver: Deliver | None = None
    ) -> Run[T]:
        """Raises Overloaded or OverQuota if too many wait, TooLate if the answer would miss its deadline, and what `work` raises.

        A caller who leaves before its turn frees its place at once; one who leaves while its work runs, when it has run: a thread
        cannot be interrupted, and what it works on must stay lent. `stop` is set then, for work that looks at it between its parts.
        """
        job = Job(work, ticket, stop, deliver)
        entry = self._admit(job)
        self.in_flight += 1
        alarm = None
        if entry is not None and ticket.deadline_s is not None:
            alarm = asyncio.get_running_loop().call_at(ticket.deadline_s, self._expire, entry, job)
        try:
            outcome: Run[T] = await job.done
        except asyncio.CancelledError:
            with self._lock:
                if entry is not None:
                    self._queue.drop(entry)
                job.abandon()
            if job.has_begun:
                await job.until_over()
            raise
        finally:
            self.in_flight -= 1
            if alarm is not None:
                alarm.cancel()
        return outcome

    def _expire(self, entry: Entry[Job], job: Job) -> None:
        """The deadline has passed: who still waits is told now, not when the turn comes, and waits in nobody's way."""
        with self._lock:
            if job.has_begun:
                return
            self._queue.drop(entry)
        job.expire()

    async def infer(
        self,
        model: LoadedModel,
        key: ModelKey,
        call: InferCall,
        tenant: Tenant,
        deadline_s: float | None,
        deliver: Deliver | None = None,
    ) -> Run[InferResult]:
        """A call of a model, in its tenant's turn. Its earlier runs, by `key`, tell how long it will take.

        Raises as `run`, and what the model or `deliver` raises.
        """
        units, stop = pace.units_of(call), StopSign(self._give_way)
        ticket = Ticket(tenant, self._paces.seconds(key, units), units, deadline_s, Mergeable(model, call))
        run = await self.run(partial(model.run, call, stop), stop, ticket, deliver)
        # Once the answer is on its way: what is learned from it is for the next one.
        asyncio.get_running_loop().call_soon(self._paces.note, key, run.seconds * run.share, units)
        return run

    def expected_s(self, key: ModelKey, units: float) -> float:
        """What a run of so much will take, as far as is known."""
        return self._paces.seconds(key, units)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self._queue)

    def waiting_by_tenant(self) -> Mapping[Tenant, int]:
        with self._lock:
            return self._queue.tenants()

    def waiting_by_class(self) -> Mapping[str, int]:
        """In the line of short runs, and in that of long ones, which may have to wait for them."""
        with self._lock:
            return self._queue.lines()

    @property
    def is_whole(self) -> bool:
        """All workers are there. One ends before `close` only by a mistake of ours."""
        return self._is_closed or all(thread.is_alive() for thread in self._threads)

    def longest_run_s(self) -> float:
        """How long the oldest run has been under way."""
        with self._lock:
            return self._under_way.longest_s(time.monotonic())

    def close(self, within_s: float | None = None) -> bool:
        """Finish what runs, forget what waits. Whether all runs came to their end."""
        self._is_closed = True
        for desk in self._desks:
            desk.put([])
        for thread in self._threads:
            thread.join(within_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _admit(self, job: Job) -> Entry[Job] | None:
        """Hand it to an idle worker, or else give it the place in the queue that is returned."""
        ticket = job.ticket
        is_long = 1e3 * ticket.run_s > self._sharing.queue.long_run_ms
        with self._lock:
            self._require_place(ticket)
            self._require_in_time(job, is_long=is_long)
            now_s = time.monotonic()
            self._visitors.note(ticket.tenant, now_s)
            if not is_long:
                self._short_s = now_s
            if self._idle and not len(self._queue) and not (is_long and self._has_to_wait(now_s)):
                number = self._idle.pop()
                self._under_way.begin(number, [job], now_s)
                self._desks[number].put([job])
                return None
            weight = self._sharing.tenant(ticket.tenant).weight
            entry = self._queue.push(job, ticket.tenant, cost=ticket.run_s, weight=weight, is_long=is_long)
            if self._idle:
                self._desks[self._idle.pop()].put([])
            return entry

    def _require_place(self, ticket: Ticket) -> None:
        """Raises Overloaded or OverQuota."""
        settings = self._sharing.queue
        if self.in_flight >= self._workers + settings.max_waiting:
            raise Overloaded(f"{self.in_flight} requests wait on this instance already: call again later, or add instances")
        if not self._under_way.are_all_busy:
            return
        own = self._sharing.tenant(ticket.tenant).max_waiting
        most = settings.max_waiting_per_tenant if own is None else own
        if self._queue.waiting(ticket.tenant) >= most:
            raise OverQuota(f"{most} requests of tenant {ticket.tenant} wait already, its limit: call again later")

    def _require_in_time(self, job: Job, *, is_long: bool) -> None:
        ticket = job.ticket
        if ticket.deadline_s is None:
            return
        now_s = time.monotonic()
        load = Load(self._workers, self._queue.ahead_of(ticket.tenant, is_long=is_long), 0.0, self._drift)
        if self._under_way.are_all_busy:
            load = replace(load, running_s=self._under_way.left_s(now_s, is_long=is_long), shared_run_s=self._shared_run_s)
        left_s = ticket.deadline_s - now_s
        if pace.is_too_late(load, ticket.run_s, left_s):
            expected_ms = 1e3 * pace.answer_s(load, ticket.run_s)
            raise TooLate(f"the answer would take about {expected_ms:.0f} ms and may take {max(0.0, 1e3 * left_s):.0f}: call again later")
        job.predicted_wait_s = pace.wait_s(load)

    # On the workers; `_has_to_wait` on the loop too.

    def _work(self, number: int) -> None:
        self._here.number = number
        while not self._is_closed:
            jobs = self._until_called(number)
            while jobs:
                self._run(number, jobs)
                jobs = self._take(number)  # none in the end: a worker that waits must not keep the last model alive

    def _until_called(self, number: int) -> list[Job]:
        """What came with the call, or what the queue has."""
        desk = self._desks[number]
        if not len(self._queue):
            return desk.get() or self._take(number)
        try:  # a long run has to wait for short ones, which may not come
            return desk.get(timeout=_KEEP_FOR_SHORT_S) or self._take(number)
        except queue.Empty:
            with self._lock:
                is_called = number not in self._idle  # since the time was over, and what it is called for is on its desk
                if not is_called:
                    self._idle.remove(number)
            return (desk.get() if is_called else []) or self._take(number)

    def _take(self, number: int) -> list[Job]:
        """The next one, and its like; none if nobody may run now, and then the worker counts as idle."""
        with self._lock:
            now_s = time.monotonic()
            if number in self._idle:  # only `close` calls without taking it off the list
                self._idle.remove(number)
            job = None
            if len(self._queue) and not self._is_closed:
                job = self._queue.pop(with_long=not self._has_to_wait(now_s))
            if job is None:
                self._idle.append(number)
                return []
            return self._start(number, job, now_s)

    def _start(self, number: int, job: Job, now_s: float, most_s: float = math.inf) -> list[Job]:
        """One that has waited, and its like, as long as all of them take so long at most."""
        jobs = self._together(job, now_s, most_s)
        for one in jobs:
            self._drift = pace.drifted(self._drift, one.predicted_wait_s, one.waited_s())
        self._under_way.begin(number, jobs, now_s)
        return jobs

    def _has_to_wait(self, now_s: float) -> bool:
        """Whether a long run would have to."""
        return pace.must_wait_for_short(
            workers=self._workers,
            long_running=self._under_way.long_count(),
            since_short_s=now_s - self._short_s,
            keep_s=_KEEP_FOR_SHORT_S,
        )

    def _together(self, job: Job, now_s: float, most_s: float) -> list[Job]:
        """With others of the same model that wait already: nobody is waited for, so a lone caller loses nothing."""
        if not len(self._queue):
            return [job]
        ticket, settings = job.ticket, self._sharing.queue
        others = self._visitors.are_others_than(ticket.tenant, now_s - _KEEP_FOR_SHORT_S)
        room_s = pace.batch_room_s(longest_s=settings.long_run_ms / 1e3, are_others_about=others, waited_s=job.waited_s())
        run = _Growing(job, Batch(min(room_s, most_s), settings.batch_tokens), now_s)
        if ticket.mergeable is None or run.is_full() or _is_late(job, now_s):
            return run.jobs
        for other in self._queue.take_like(run.may_take, ticket.tenant):
            run.take(other)
            if run.is_full():
                break
        return run.jobs

    def _run(self, number: int, jobs: list[Job]) -> None:
        now_s = time.monotonic()
        timely = [job for job in jobs if job.is_wanted and not _is_late(job, now_s)]
        for job in jobs:
            if job not in timely:
                job.expire()
        began_s, shared = time.monotonic(), StopSign(self._give_way)
        try:
            if len(timely) > 1:
                run_together(timely, shared)
            elif timely:
                timely[0].run()
        finally:
            with self._lock:
                self._under_way.end(number)
                if timely:
                    own_s = time.monotonic() - began_s - shared.away_s - timely[0].away_s
                    self._shared_run_s += _SMOOTHING * (own_s - self._shared_run_s)
                self.merged += len(timely) if len(timely) > 1 else 0

    def _give_way(self, stop: StopSign) -> None:
        """Between the parts of a run: if all workers are at long ones, and short ones wait, their first is run here and now."""
        if not len(self._queue) or self._is_closed:
            return
        number, now_s = self._here.number, time.monotonic()
        with self._lock:
            if self._idle or not self._under_way.may_step_aside(number, stop.away_s, now_s):
                return
            job = self._queue.pop(with_long=False)
            if job is None:
                return
            self._under_way.step_aside(number)
            jobs = self._start(number, job, now_s, self._sharing.queue.long_run_ms / 1e3)
        self._run(number, jobs)
        with self._lock:
            self._under_way.step_back(number, time.monotonic() - now_s)


class _Visitors:
    """Whose requests came lately: the last tenant, and the last one before it that was another."""

    def __init__(self) -> None:
        self._last: Tenant | None = None
        self._last_s = self._other_s = float("-inf")

    def note(self, tenant: Tenant, now_s: float) -> None:
        if self._last is not None and tenant != self._last:
            self._other_s = self._last_s
        self._last, self._last_s = tenant, now_s

    def are_others_than(self, tenant: Tenant, since_s: float) -> bool:
        return (self._other_s if tenant == self._last else self._last_s) > since_s


class _Growing:
    """A run that is being put together."""

    def __init__(self, first: Job, empty: Batch, now_s: float) -> None:
        self.jobs = [first]
        self._batch = batch.with_rider(empty, _rider(first.ticket))
        self._now_s = now_s

    def is_full(self) -> bool:
        return self._batch.is_full

    def may_take(self, other: Job) -> bool:
        return _is_like(self.jobs[0], other) and batch.may_join(self._batch, _rider(other.ticket), self._now_s)

    def take(self, other: Job) -> None:
        self.jobs.append(other)
        self._batch = batch.with_rider(self._batch, _rider(other.ticket))


def _is_like(job: Job, other: Job) -> bool:
    """Of the same model, asking for the same, and of about the same length: others would make the first one wait for nothing."""
    mine, its = job.ticket.mergeable, other.ticket.mergeable
    if mine is None or its is None or mine.model is not its.model or not other.is_wanted:
        return False
    longer, shorter = max(job.ticket.units, other.ticket.units), min(job.ticket.units, other.ticket.units)
    return longer <= 2 * shorter and (likeness := mine.likeness) is not None and likeness == its.likeness


def _rider(ticket: Ticket) -> Rider:
    return Rider(ticket.run_s, ticket.units, float("inf") if ticket.deadline_s is None else ticket.deadline_s)


def _is_late(job: Job, now_s: float) -> bool:
    return job.ticket.deadline_s is not None and now_s + job.ticket.run_s > job.ticket.deadline_s
