"""Turns on the cores: in the long run everybody gets the same, whatever a turn takes."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy.turns import first_use_s, next_turn


@given(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=6), st.integers(50, 300))
def test_nobody_is_ahead_by_more_than_a_turn(turns_s: list[float], count: int) -> None:
    used = dict.fromkeys(range(len(turns_s)), 0.0)
    for _ in range(count):
        name = next_turn(used)
        used[name] += turns_s[name]
    assert max(used.values()) - min(used.values()) <= max(turns_s) + 1e-9


def test_of_equals_the_first_comes_first() -> None:
    assert next_turn({"b": 1.0, "a": 1.0}) == "b"


def test_a_newcomer_neither_waits_nor_pushes_in() -> None:
    assert first_use_s({"a": 5.0, "b": 7.0}) == 5.0
    assert first_use_s({}) == 0.0
