"""The worth of a model: more for those wanted more, and never out of bounds, whatever the history."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy import worth
from flatshare.policy.worth import Season, Visits

HOUR = 3_600.0
SEASON = Season(now_s=10 * HOUR, bin=9, observed_h=10.0, bin_h=1.0, cohort_rate=0.5, cohort_starts=5.0)
GAPS = st.lists(st.floats(0, 20_000), max_size=40)


def history(gaps: list[float], begin_s: float = 0.0, hour_bin: int = 9) -> Visits:
    now_s, visits = begin_s, worth.first_visit(begin_s, hour_bin)
    for gap_s in gaps:
        now_s += gap_s
        visits = worth.next_visit(visits, now_s, hour_bin)
    return visits


def value(visits: Visits | None, now_s: float, reload_s: float = 0.03) -> float:
    return worth.worth(visits, replace(SEASON, now_s=now_s), reload_s)


@given(GAPS, st.floats(0, 1e6), st.floats(0, 100))
def test_it_is_a_number_that_is_not_negative_and_bounded_by_the_rate(gaps: list[float], later_s: float, reload_s: float) -> None:
    visits = history(gaps)
    found = value(visits, visits.last_s + later_s, reload_s)
    assert 0 <= found <= (4.1 + (len(gaps) + 10) / 10) * reload_s * (1 + reload_s)


@given(GAPS)
def test_requests_and_sessions_are_counted_apart(gaps: list[float]) -> None:
    visits = history(gaps)
    assert visits.requests == 1 + len(gaps)
    assert visits.all_starts == 1 + sum(gap > worth.SESSION_END_S for gap in gaps)
    assert visits.gaps + visits.all_starts == visits.requests


@given(GAPS)
def test_every_gap_is_counted_once_by_its_length(gaps: list[float]) -> None:
    assert sum(history(gaps).silences) == len(gaps)
    assert history([0.1, 0.3, 300.0]).silences[worth.gap_bin(300.0)] == 1


def test_one_that_comes_back_every_five_minutes_is_not_taken_for_dead_after_four() -> None:
    """Bursts of ten requests a second, and five minutes of silence: by the mean gap of three seconds it would not come back."""
    bursts, once = history(([0.1] * 100 + [300.0]) * 10 + [0.1] * 100), history([0.1] * 100)
    usual = {worth.gap_bin(300.0): 10, worth.GAP_BINS - 1: 990}  # who is silent for minutes is silent for hours, as a rule
    season = replace(SEASON, cohort_rate=0.0, cohort_silences=tuple(usual.get(length, 0) for length in range(worth.GAP_BINS)))

    def after_four_minutes(visits: Visits) -> float:
        return worth.worth(visits, replace(season, now_s=visits.last_s + 240), 0.03)

    assert after_four_minutes(bursts) > 5 * after_four_minutes(once)


@given(st.floats(0.5, 500), st.integers(5, 50))
def test_one_that_is_overdue_is_worth_less_than_one_that_is_due(gap_s: float, count: int) -> None:
    visits = history([gap_s] * count)
    assert value(visits, visits.last_s + 4 * gap_s) < value(visits, visits.last_s + gap_s)


def test_of_a_model_without_a_past_everybody_s_silences_are_expected() -> None:
    season = replace(SEASON, cohort_silences=tuple(100 if length == worth.gap_bin(60.0) else 0 for length in range(worth.GAP_BINS)))
    new = history([], begin_s=SEASON.now_s - 50.0)
    at_fifty = worth.worth(new, replace(season, now_s=new.last_s + 50), 0.03)
    at_two_hundred = worth.worth(new, replace(season, now_s=new.last_s + 200), 0.03)
    assert at_fifty > 3 * at_two_hundred


@given(GAPS, st.floats(0.001, 10), st.floats(1.001, 10))
def test_a_slow_load_is_worth_more_to_avoid(gaps: list[float], reload_s: float, factor: float) -> None:
    visits = history(gaps)
    assert value(visits, visits.last_s + 60, reload_s * factor) > value(visits, visits.last_s + 60, reload_s)


def test_a_model_with_more_sessions_is_worth_more_once_both_are_idle() -> None:
    often, seldom = history([HOUR] * 9), history([9 * HOUR])
    assert value(often, 10 * HOUR) > value(seldom, 10 * HOUR)


def test_many_requests_in_one_session_are_not_many_sessions() -> None:
    chatty = history([5.0] * 500)
    steady = history([1_000.0] * 9)
    now_s = 9 * HOUR
    assert value(steady, now_s) > value(chatty, now_s)


def test_a_session_that_goes_on_is_worth_more_than_one_that_has_ended() -> None:
    visits = history([10.0] * 5)
    assert value(visits, visits.last_s + 5) > 5 * value(visits, visits.last_s + 2_000)


def test_a_model_never_seen_is_worth_what_the_cohort_is() -> None:
    assert worth.worth(None, SEASON, 0.36) == 0.5 / HOUR * 0.36


def test_the_hour_of_the_day_counts() -> None:
    morning, evening = history([HOUR] * 5, hour_bin=9), history([HOUR] * 5, hour_bin=20)
    assert value(morning, 10 * HOUR) > value(evening, 10 * HOUR)


def test_hours_are_those_of_utc_and_weekends_apart() -> None:
    thursday_s, saturday_s = 0.0, 2 * 86_400.0
    assert (worth.bin_of(thursday_s + 13 * HOUR), worth.bin_of(saturday_s + 13 * HOUR)) == (13, 24 + 13)
    assert worth.bin_of(thursday_s + 86_400 + 0.5) == 0


def test_a_prefetch_has_to_be_worth_twice_its_victims() -> None:
    assert worth.is_worth_a_prefetch(2.1, 1.0)
    assert not worth.is_worth_a_prefetch(2.0, 1.0)
