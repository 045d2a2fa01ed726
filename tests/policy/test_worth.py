"""The worth of a model: more for those wanted more and later, bounded by how often it was asked for, and for equals the order of LRU."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy import worth
from flatshare.policy.worth import SCALES_S, Visits

GAPS = st.lists(st.floats(0, 20_000), max_size=40)
IDLE_S = st.floats(0, 1e5)


def history(gaps: list[float], begin_s: float = 0.0) -> Visits:
    now_s, visits = begin_s, Visits(begin_s)
    for gap_s in gaps:
        now_s += gap_s
        visits = worth.next_visit(visits, now_s)
    return visits


def value(visits: Visits | None, now_s: float, reload_s: float = 0.03) -> float:
    return worth.worth(visits, now_s, reload_s)


@given(GAPS, st.floats(0, 1e7), st.floats(0, 100))
def test_it_is_a_number_that_is_not_negative_and_bounded_by_the_requests(gaps: list[float], later_s: float, reload_s: float) -> None:
    visits = history(gaps)
    assert 0 <= value(visits, visits.last_s + later_s, reload_s) <= visits.requests * sum(1 / s for s in SCALES_S) * reload_s * (1 + 1e-9)


@given(GAPS)
def test_each_request_is_counted_and_fades(gaps: list[float]) -> None:
    visits = history(gaps)
    assert visits.requests == 1 + len(gaps)
    assert all(1 <= faded <= visits.requests * (1 + 1e-9) for faded in visits.faded)
    assert list(visits.faded) == sorted(visits.faded), "what is remembered longer has faded less"


@given(GAPS, IDLE_S, st.floats(0.001, 10))
def test_idling_makes_no_model_worth_more(gaps: list[float], later_s: float, more_s: float) -> None:
    visits = history(gaps)
    now_s = visits.last_s + later_s
    assert value(visits, now_s + more_s) <= value(visits, now_s)


@given(GAPS, IDLE_S)
def test_another_request_makes_a_model_worth_more(gaps: list[float], later_s: float) -> None:
    visits = history(gaps)
    now_s = visits.last_s + later_s
    assert value(worth.next_visit(visits, now_s), now_s) > value(visits, now_s)


@given(GAPS, IDLE_S, st.floats(1, 1e5))
def test_of_two_with_the_same_history_the_one_used_last_is_worth_more(gaps: list[float], later_s: float, between_s: float) -> None:
    early, late = history(gaps), history(gaps, begin_s=between_s)
    now_s = late.last_s + later_s
    assert value(late, now_s) >= value(early, now_s)
    assert value(late, now_s) > value(early, now_s) * (1 + 1e-12)


@given(GAPS, st.floats(0.001, 10), st.floats(1.001, 10))
def test_a_slow_load_is_worth_more_to_avoid(gaps: list[float], reload_s: float, factor: float) -> None:
    visits = history(gaps)
    assert value(visits, visits.last_s + 60, reload_s * factor) > value(visits, visits.last_s + 60, reload_s)


@given(st.floats(60, 1e5))
def test_asked_for_once_a_model_is_worth_what_its_idle_time_says(idle_s: float) -> None:
    assert 0.7 < idle_s * value(Visits(0.0), idle_s, reload_s=1.0) < 1.0


def test_a_model_asked_for_every_minute_outlives_one_asked_for_once_and_later() -> None:
    often, once = history([60.0] * 4), Visits(300.0)
    assert value(often, 600) > value(once, 600)


def test_a_hundred_requests_in_a_burst_are_soon_less_than_ten_over_the_day() -> None:
    burst, steady = history([0.1] * 100, begin_s=6 * 3_600), history([3_600.0] * 9)
    assert value(burst, burst.last_s) > value(steady, burst.last_s)
    assert value(steady, 24 * 3_600) * 100 / 10 > value(burst, 24 * 3_600), "the burst is worth less than its requests say"


def test_a_model_never_seen_is_worth_less_than_one_just_seen_and_more_than_nothing() -> None:
    assert 0 < value(None, 10_000) < value(Visits(9_000.0), 10_000)


def test_a_prefetch_has_to_be_worth_twice_its_victims() -> None:
    assert worth.is_worth_a_prefetch(2.1, 1.0)
    assert not worth.is_worth_a_prefetch(2.0, 1.0)


def test_what_was_not_worth_a_prefetch_is_weighed_again_once_it_was_asked_for_twice_as_often_or_after_a_minute() -> None:
    assert not worth.is_weighed_again(9, refused_at=5, ago_s=59)
    assert worth.is_weighed_again(10, refused_at=5, ago_s=0)
    assert worth.is_weighed_again(6, refused_at=5, ago_s=60)
