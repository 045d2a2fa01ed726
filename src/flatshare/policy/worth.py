"""What is it worth to keep a model in memory? User-seconds saved per second: how often it is wanted, times how long a load would take.

    worth = w · λ · D                  value per byte = worth ÷ bytes that would come free
    λ = Σ_τ √n_τ / τ                   n_τ counts the model's requests, each faded by e^(-age/τ), over half a minute to three days
    D                                  reload time

Of a model asked for once, λ falls as 1 ÷ idle time: among models of one size that were asked for once, it is the order of LRU. The root
is because requests come in bursts: a hundred of them say more than one does, and not a hundred times as much (docs/decisions/0086).
"""

import math
from dataclasses import dataclass

SCALES_S = (30.0, 300.0, 3_000.0, 30_000.0, 300_000.0)
_UNSEEN_IDLE_S = 3_600.0  # a model never asked for counts as if it had been, once, an hour ago
_SAFETY = 2.0  # a prefetch has to be worth twice what it pushes out: predictions err


@dataclass(frozen=True, slots=True)
class Visits:
    """What is remembered of the requests for one model."""

    last_s: float
    requests: int = 1
    faded: tuple[float, ...] = (1.0,) * len(SCALES_S)
    """Requests as of `last_s`, faded over each of the scales."""


def next_visit(visits: Visits, now_s: float) -> Visits:
    """One more request."""
    return Visits(max(now_s, visits.last_s), visits.requests + 1, tuple(1.0 + count for count in _faded(visits, now_s)))


def worth(visits: Visits | None, now_s: float, reload_s: float, weight: float = 1.0) -> float:
    """User-seconds that the model saves per second while it is in memory."""
    if visits is None:
        visits = Visits(now_s - _UNSEEN_IDLE_S)
    wanted_per_s = sum(math.sqrt(count) / scale_s for count, scale_s in zip(_faded(visits, now_s), SCALES_S, strict=True))
    return weight * wanted_per_s * reload_s


def is_worth_a_prefetch(worth_in: float, worth_out: float) -> bool:
    """Is the newcomer worth so much more than all of its victims together that a mistaken forecast does no harm?"""
    return worth_in > _SAFETY * worth_out


_WEIGHED_AGAIN_S = 60.0


def is_weighed_again(requests: int, refused_at: int, ago_s: float) -> bool:
    """May what was not worth a prefetch then, after so many requests, be worth one now? It takes a look at the store to find out."""
    return requests >= 2 * refused_at or ago_s >= _WEIGHED_AGAIN_S  # others may have left meanwhile


def _faded(visits: Visits, now_s: float) -> list[float]:
    idle_s = max(0.0, now_s - visits.last_s)
    return [count * math.exp(-idle_s / scale_s) for count, scale_s in zip(visits.faded, SCALES_S, strict=True)]
