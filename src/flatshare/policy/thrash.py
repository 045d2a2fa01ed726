"""Is the cache thrashing? The share of loads that bring back what was evicted a short while ago: a signal that memory is too small."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

EVICTED_LATELY_S = 600.0
WINDOW_S = 120.0
LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """The loads of one moment."""

    at_s: float
    reloads: int
    """Of models that had been evicted less than `EVICTED_LATELY_S` before."""
    loads: int = 1


@dataclass(frozen=True, slots=True)
class Thrash:
    """The loads of the last two minutes."""

    loads: int
    reloads: int

    @property
    def index(self) -> float:
        return self.reloads / self.loads if self.loads else 0.0


def observed(events: Sequence[LoadEvent], now_s: float) -> Thrash:
    recent = [event for event in events if now_s - event.at_s < WINDOW_S]
    return Thrash(sum(event.loads for event in recent), sum(event.reloads for event in recent))


def since_when(events: Sequence[LoadEvent], now_s: float) -> float | None:
    """Since when the index has been above the limit without a break; None if it is not.

    It is followed through the moments at which it changes: a load counts from its own to the one at which it is two minutes old.
    """
    comes = [(event.at_s, event.loads, event.reloads) for event in events]
    goes = [(event.at_s + WINDOW_S, -event.loads, -event.reloads) for event in events]
    loads, reloads, began_s = 0, 0, None
    for at_s, changes in groupby(sorted(change for change in comes + goes if change[0] <= now_s), key=lambda change: change[0]):
        for _, more_loads, more_reloads in changes:
            loads, reloads = loads + more_loads, reloads + more_reloads
        if Thrash(loads, reloads).index <= LIMIT:
            began_s = None
        elif began_s is None:
            began_s = at_s
    return began_s


def is_capacity_signal(events: Sequence[LoadEvent], now_s: float) -> bool:
    """Two minutes above the limit: more memory would pay. Needs the loads of the last four."""
    began_s = since_when(events, now_s)
    return began_s is not None and now_s - began_s >= WINDOW_S
