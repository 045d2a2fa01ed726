"""The thrash index counts what comes back soon after it left."""

from flatshare.policy import thrash
from flatshare.policy.thrash import LoadEvent, Thrash


def test_the_index_is_the_share_of_reloads_in_the_last_two_minutes() -> None:
    events = (LoadEvent(0, is_reload=True), LoadEvent(100, is_reload=True), LoadEvent(150, is_reload=False), LoadEvent(200, is_reload=True))
    seen = thrash.observed(events, now_s=210)
    assert (seen, seen.index) == (Thrash(3, 2), 2 / 3)
    assert thrash.observed((), 0).index == 0


def test_only_two_minutes_above_the_limit_without_a_break_are_a_signal() -> None:
    high, low = Thrash(10, 4), Thrash(10, 3)
    began_s = thrash.since_when(high, None, 100)
    assert began_s == 100
    assert not thrash.is_capacity_signal(began_s, 219)
    assert thrash.is_capacity_signal(thrash.since_when(high, began_s, 219), 220)
    assert thrash.since_when(low, began_s, 219) is None
    assert not thrash.is_capacity_signal(None, 1_000)
