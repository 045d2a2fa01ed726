"""The thrash index counts what comes back soon after it left."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy import thrash
from flatshare.policy.thrash import LoadEvent, Thrash


def each_second(reloads: int, loads: int, *, begin: int, end: int) -> list[LoadEvent]:
    return [LoadEvent(at_s, reloads, loads) for at_s in range(begin, end)]


def test_the_index_is_the_share_of_reloads_in_the_last_two_minutes() -> None:
    events = (LoadEvent(0, 1), LoadEvent(100, 1), LoadEvent(150, 0), LoadEvent(200, 1, 2))
    seen = thrash.observed(events, now_s=210)
    assert (seen, seen.index) == (Thrash(4, 2), 1 / 2)
    assert thrash.observed((), 0).index == 0


def test_only_two_minutes_above_the_limit_without_a_break_are_a_signal() -> None:
    high = each_second(4, 10, begin=100, end=300)
    assert thrash.since_when(high, 219) == 100
    assert not thrash.is_capacity_signal(high, 219)
    assert thrash.is_capacity_signal(high, 220)
    assert thrash.since_when(each_second(3, 10, begin=100, end=300), 219) is None
    assert not thrash.is_capacity_signal((), 1_000)


def test_loads_that_grow_old_count_no_more_also_if_no_other_comes() -> None:
    burst = each_second(1, 1, begin=0, end=5)
    assert thrash.since_when(burst, 123) == 0
    assert thrash.since_when(burst, 124) is None
    assert thrash.since_when([*burst, LoadEvent(500, 1)], 501) == 500


def test_the_index_may_come_to_pass_the_limit_because_loads_grow_old() -> None:
    events = [LoadEvent(0, 0, 10), LoadEvent(60, 1, 1)]
    assert thrash.since_when(events, 119) is None
    assert thrash.since_when(events, 150) == 120


@given(
    st.lists(st.builds(lambda at_s, loads: LoadEvent(at_s, min(at_s % 4, loads), loads), st.integers(0, 300), st.integers(1, 3))),
    st.integers(0, 400),
)
def test_it_says_what_a_look_each_second_would_say(events: list[LoadEvent], now_s: int) -> None:
    began_s = None
    for at_s in range(now_s + 1):
        is_above = thrash.observed([event for event in events if event.at_s <= at_s], at_s).index > thrash.LIMIT
        began_s = (at_s if began_s is None else began_s) if is_above else None
    assert thrash.since_when(events, now_s) == began_s
