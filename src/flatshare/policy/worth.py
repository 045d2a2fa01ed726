"""What is it worth to keep a model in memory? User-seconds saved per second: how often it is wanted, times how long a load would take.

    worth = w · λ · D        λ = Λ(hour) · F + cont                  value per byte = worth ÷ bytes that would come free
    Λ(h)    session starts per hour in this hour of a weekday or weekend: seen, shrunk to what the cohort does
    F       is this a day on which more, or fewer, come than usual? decayed over two hours
    cont    will it be asked for now, after so long a silence? what its own silences and everybody's say (the hazard of gaps)
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
_SHORTEST_GAP_S, GAP_BINS = 0.25, 16  # each twice as wide as the one before: up to 2.3 hours, and beyond
_PRIOR_SILENCES = 3.0  # of the cohort: as much evidence as so many silences of the model's own
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
    silences: tuple[int, ...] = (0,) * GAP_BINS
    """Gaps between two requests, by length: bin 0 up to a quarter of a second, each further one twice as long."""

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
    cohort_silences: tuple[int, ...] = (0,) * GAP_BINS
    """As `Visits.silences`, of all models together."""


def bin_of(wall_s: float) -> int:
    """Which of the 48 hours it is, in UTC. The first of January 1970 was a Thursday."""
    weekday = (int(wall_s // 86_400) + 3) % 7
    return int(wall_s % 86_400 // 3_600) + (24 if weekday >= 5 else 0)


def first_visit(now_s: float, hour_bin: int) -> Visits:
    return Visits(now_s, starts=_one_more((0.0,) * BINS, hour_bin), recent_s=now_s)


def next_visit(visits: Visits, now_s: float, hour_bin: int) -> Visits:
    """One more request."""
    gap_s = max(0.0, now_s - visits.last_s)
    length = gap_bin(gap_s)
    visits = replace(visits, silences=(*visits.silences[:length], visits.silences[length] + 1, *visits.silences[length + 1 :]))
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
    wanted_per_s = _starts_per_hour(visits, season) / 3_600 + _returns_per_s(visits, season)
    return weight * wanted_per_s * reload_s * (1 + reload_s / gap_s / 2)


def is_worth_a_prefetch(worth_in: float, worth_out: float) -> bool:
    """Is the newcomer worth so much more than all of its victims together that a mistaken forecast does no harm?"""
    return worth_in > _SAFETY * worth_out


def _starts_per_hour(visits: Visits, season: Season) -> float:
    volume = (visits.all_starts + 1) / (season.cohort_starts + 1)
    usual = (visits.starts[season.bin] + _E0_H * volume * season.cohort_rate) / (season.bin_h + _E0_H)
    expected = usual * _TAU_H * -math.expm1(-season.observed_h / _TAU_H)
    return usual * (_A0 + _faded(visits, season.now_s)) / (_A0 + expected)


def gap_bin(gap_s: float) -> int:
    """Which bin of `Visits.silences` a gap belongs to."""
    return min(GAP_BINS - 1, max(0, math.frexp(gap_s / _SHORTEST_GAP_S)[1]))


def _returns_per_s(visits: Visits, season: Season) -> float:
    """How soon do silences as long as this one end? The most returns per second of further waiting, whatever the horizon (Gittins' index).

    Silences have heavy tails: an exponential one, as the sessions of policy.md have, calls a model dead that comes back every five minutes.
    """
    silent_s = max(0.0, season.now_s - visits.last_s)
    now = gap_bin(silent_s)
    lasted, all_lasted = sum(visits.silences[now:]), sum(season.cohort_silences[now:])
    ended, best = 0.0, 0.0
    for length in range(now, GAP_BINS):
        usual = season.cohort_silences[length] / all_lasted if all_lasted else 0.5 * (length == now)
        ended += visits.silences[length] + _PRIOR_SILENCES * usual
        # A silence is somewhere in its bin; the last one has no end, and who was silent for hours may be so for hours more.
        begin_s, end_s = (_SHORTEST_GAP_S * 2.0 ** (length - 1) if length else 0.0), _SHORTEST_GAP_S * 2.0**length
        horizon_s = max(end_s - silent_s, (end_s - begin_s) / 2) if length < GAP_BINS - 1 else max(end_s, 2 * silent_s)
        best = max(best, ended / (lasted + _PRIOR_SILENCES) / horizon_s)
    return best


def _gap_s(visits: Visits) -> float:
    return max(_LEAST_GAP_S, (visits.gap_sum_s + _PRIOR_GAPS * _PRIOR_GAP_S) / (visits.gaps + _PRIOR_GAPS))


def _faded(visits: Visits, now_s: float) -> float:
    return visits.recent * math.exp(-max(0.0, now_s - visits.recent_s) / (3_600 * _TAU_H))


def _one_more(starts: tuple[float, ...], hour_bin: int) -> tuple[float, ...]:
    return (*starts[:hour_bin], starts[hour_bin] + 1, *starts[hour_bin + 1 :])
