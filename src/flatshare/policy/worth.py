"""What is it worth to keep a model in memory? User-seconds saved per second: how often it is wanted, times how long a load would take.

    worth = w · λ · D        λ = Λ(hour) · F + cont                  value per byte = worth ÷ bytes that would come free
    Λ(h)    session starts per hour in this hour of a weekday or weekend: seen, shrunk to what the cohort does
    F       is this a day on which more, or fewer, come than usual? decayed over two hours
    cont    the session that is going on: does it go on?
    D       reload time, riders that would pile up behind the load included

Session *starts* are counted, since counting requests over-values chatty tenants. One diurnal shape is shared by all models (the mean
of what this instance saw) where policy.md has six fitted ones: an instance sees too little to fit six.
"""

import math
from dataclasses import dataclass, replace

BINS = 48  # 24 hours of a weekday, 24 of a weekend
SESSION_END_S = 600.0
"""A request after a longer silence begins a new session."""
_E0_H = 6.0  # hours of evidence that the cohort's mean is worth
_A0 = 1.5
_TAU_H = 2.0
_PRIOR_GAP_S, _PRIOR_GAPS = 60.0, 2.0
_PRIOR_GOES_ON, _PRIOR_REQUESTS = 4.0, 5.0  # sessions of five requests
_LEAST_GAP_S = 0.5  # a flood is no reason to value a model without bound
_SAFETY = 2.0  # a prefetch has to be worth twice what it pushes out: predictions err


@dataclass(frozen=True, slots=True)
class Visits:
    """What is remembered of the requests for one model."""

    last_s: float
    requests: int = 1
    starts: tuple[float, ...] = (0.0,) * BINS
    gap_sum_s: float = 0.0
    gaps: int = 0
    recent: float = 1.0
    """Session starts, decayed, as of `recent_s`."""
    recent_s: float = 0.0

    @property
    def all_starts(self) -> float:
        return sum(self.starts)


@dataclass(frozen=True, slots=True)
class Season:
    """The moment at which models are valued, and what all of them together did in hours like this one."""

    now_s: float
    bin: int
    observed_h: float
    """Hours that this instance has watched in all."""
    bin_h: float
    """Hours like this one among them."""
    cohort_rate: float
    """Session starts per hour of a mean model in hours like this one."""
    cohort_starts: float
    """Session starts of a mean model in all."""


def bin_of(wall_s: float) -> int:
    """Which of the 48 hours it is, in UTC. The first of January 1970 was a Thursday."""
    weekday = (int(wall_s // 86_400) + 3) % 7
    return int(wall_s % 86_400 // 3_600) + (24 if weekday >= 5 else 0)


def first_visit(now_s: float, hour_bin: int) -> Visits:
    return Visits(now_s, starts=_one_more((0.0,) * BINS, hour_bin), recent_s=now_s)


def next_visit(visits: Visits, now_s: float, hour_bin: int) -> Visits:
    """One more request."""
    gap_s = max(0.0, now_s - visits.last_s)
    if gap_s <= SESSION_END_S:
        return replace(visits, last_s=now_s, requests=visits.requests + 1, gap_sum_s=visits.gap_sum_s + gap_s, gaps=visits.gaps + 1)
    return replace(
        visits,
        last_s=now_s,
        requests=visits.requests + 1,
        starts=_one_more(visits.starts, hour_bin),
        recent=1.0 + _faded(visits, now_s),
        recent_s=now_s,
    )


def worth(visits: Visits | None, season: Season, reload_s: float, weight: float = 1.0) -> float:
    """User-seconds that the model saves per second while it is in memory. Of a model never seen: what the cohort's mean is worth."""
    if visits is None:
        return weight * season.cohort_rate / 3_600 * reload_s
    gap_s = _gap_s(visits)
    wanted_per_s = _starts_per_hour(visits, season) / 3_600 + _goes_on_per_s(visits, season.now_s, gap_s)
    return weight * wanted_per_s * reload_s * (1 + reload_s / gap_s / 2)


def is_worth_a_prefetch(worth_in: float, worth_out: float) -> bool:
    """Is the newcomer worth so much more than all of its victims together that a mistaken forecast does no harm?"""
    return worth_in > _SAFETY * worth_out


def _starts_per_hour(visits: Visits, season: Season) -> float:
    volume = (visits.all_starts + 1) / (season.cohort_starts + 1)
    usual = (visits.starts[season.bin] + _E0_H * volume * season.cohort_rate) / (season.bin_h + _E0_H)
    expected = usual * _TAU_H * -math.expm1(-season.observed_h / _TAU_H)
    return usual * (_A0 + _faded(visits, season.now_s)) / (_A0 + expected)


def _goes_on_per_s(visits: Visits, now_s: float, gap_s: float) -> float:
    chance = (visits.gaps + _PRIOR_GOES_ON) / (visits.requests + _PRIOR_REQUESTS)
    alive = chance * math.exp(-max(0.0, now_s - visits.last_s) / gap_s)
    return alive / (alive + 1 - chance) / gap_s


def _gap_s(visits: Visits) -> float:
    return max(_LEAST_GAP_S, (visits.gap_sum_s + _PRIOR_GAPS * _PRIOR_GAP_S) / (visits.gaps + _PRIOR_GAPS))


def _faded(visits: Visits, now_s: float) -> float:
    return visits.recent * math.exp(-max(0.0, now_s - visits.recent_s) / (3_600 * _TAU_H))


def _one_more(starts: tuple[float, ...], hour_bin: int) -> tuple[float, ...]:
    return (*starts[:hour_bin], starts[hour_bin] + 1, *starts[hour_bin + 1 :])
