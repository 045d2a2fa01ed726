"""Is the cache thrashing? The share of loads that bring back what was evicted a short while ago: a signal that memory is too small."""

from dataclasses import dataclass

EVICTED_LATELY_S = 600.0
WINDOW_S = 120.0
LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class LoadEvent:
    at_s: float
    is_reload: bool
    """Of a model that had been evicted less than `EVICTED_LATELY_S` before."""


@dataclass(frozen=True, slots=True)
class Thrash:
    """The loads of the last two minutes."""

    loads: int
    reloads: int

    @property
    def index(self) -> float:
        return self.reloads / self.loads if self.loads else 0.0


def observed(events: tuple[LoadEvent, ...], now_s: float) -> Thrash:
    recent = [event for event in events if now_s - event.at_s <= WINDOW_S]
    return Thrash(len(recent), sum(event.is_reload for event in recent))


def since_when(thrash: Thrash, began_s: float | None, now_s: float) -> float | None:
    """Since when the index has been above the limit without a break, given what the last look said; None if it is not."""
    if thrash.index <= LIMIT:
        return None
    return now_s if began_s is None else began_s


def is_capacity_signal(began_s: float | None, now_s: float) -> bool:
    """Two minutes above the limit: more memory would pay."""
    return began_s is not None and now_s - began_s >= WINDOW_S
