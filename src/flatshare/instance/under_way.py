"""Step 6c: what the workers do at this moment, and which of them stands aside for shorter runs between its parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from flatshare.instance.backends.base import StopSign
from flatshare.instance.job import Job
from flatshare.policy import pace


@dataclass(frozen=True, slots=True)
class _Run:
    """One worker's."""

    began_s: float
    until_s: float
    """Expected."""
    due_s: float
    is_expected_long: bool
    stop: StopSign | None


class UnderWay:
    """Its owner has the lock and the clock, time.monotonic. A worker has one run, and one more that stands aside for it."""

    def __init__(self, workers: int, long_s: float) -> None:
        self._workers = workers
        self._long_s = long_s
        self._runs: dict[int, _Run] = {}
        self._aside: dict[int, _Run] = {}

    def begin(self, number: int, jobs: Sequence[Job], now_s: float) -> None:
        """These together, on the worker with this number."""
        tickets = [job.ticket for job in jobs]
        due_s = min((ticket.deadline_s for ticket in tickets if ticket.deadline_s is not None), default=math.inf)
        is_long = tickets[0].run_s > self._long_s
        until_s = now_s + sum(ticket.run_s for ticket in tickets)
        self._runs[number] = _Run(now_s, until_s, due_s, is_long, jobs[0].stop if len(jobs) == 1 else None)
        for job in jobs:
            job.begin()

    def end(self, number: int) -> None:
        del self._runs[number]

    @property
    def are_all_busy(self) -> bool:
        return len(self._runs) >= self._workers

    def may_step_aside(self, number: int, away_s: float, now_s: float) -> bool:
        """Whether a worker between two parts of its run may serve a short one: if no other does, and its own can afford it."""
        if number in self._aside or not self.are_all_busy or not all(self._is_long(run, now_s) for run in self._runs.values()):
            return False
        run = self._runs[number]
        left_s, own_s = max(0.0, run.until_s - now_s), now_s - run.began_s - away_s
        return pace.may_give_way(own_s=own_s, away_s=away_s, left_s=left_s, due_in_s=run.due_s - now_s, guest_s=self._long_s)

    def step_aside(self, number: int) -> None:
        self._aside[number] = self._runs.pop(number)

    def step_back(self, number: int, away_s: float) -> None:
        """Its guest has ended, after so long."""
        run = self._aside.pop(number)
        self._runs[number] = replace(run, until_s=run.until_s + away_s)

    def long_count(self) -> int:
        return sum(run.is_expected_long for run in self._all())

    def left_s(self, now_s: float, *, is_long: bool) -> float:
        """What stands before a newcomer, of all workers together: a short one goes before the next part of a long run."""
        return sum(self._left_s(run, now_s, is_long=is_long) for run in self._all())

    def longest_s(self, now_s: float) -> float:
        """How long the oldest run has been under way."""
        return max((now_s - run.began_s for run in self._all()), default=0.0)

    def _all(self) -> chain[_Run]:
        return chain(self._runs.values(), self._aside.values())

    def _left_s(self, run: _Run, now_s: float, *, is_long: bool) -> float:
        left_s = max(0.0, run.until_s - now_s)
        return left_s if is_long or run.stop is None else left_s / (1 + run.stop.parts_left)

    def _is_long(self, run: _Run, now_s: float) -> bool:
        """As was expected, or as it turns out."""
        return run.is_expected_long or now_s - run.began_s > self._long_s
