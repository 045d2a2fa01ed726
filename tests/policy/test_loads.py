"""Which loads are begun for requests with deadlines."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy import loads
from flatshare.policy.loads import LoadLine, Start

LINES = st.builds(LoadLine, st.integers(1, 8), st.integers(0, 100), st.floats(0, 2), st.integers(0, 3))


@given(LINES, st.floats(0.001, 5))
def test_without_a_deadline_every_load_is_begun(line: LoadLine, load_s: float) -> None:
    assert loads.start(line, load_s, None) is Start.FOR_THIS


@given(LINES, st.floats(0.001, 5), st.floats(0, 10))
def test_nobody_is_let_wait_for_what_comes_too_late_and_no_crowded_line_is_joined_for_nothing(
    line: LoadLine, load_s: float, left_s: float
) -> None:
    found = loads.start(line, load_s, left_s)
    assert (found is Start.FOR_THIS) == (loads.answer_s(line, load_s) <= left_s)
    if found is Start.FOR_THE_NEXT:
        assert line.ahead + line.giving_way < line.places
    if found is Start.NOT_NOW:
        assert line.ahead + line.giving_way >= line.places


@given(LINES, st.floats(0.001, 5))
def test_one_more_ahead_never_makes_an_answer_sooner(line: LoadLine, load_s: float) -> None:
    longer = replace(line, ahead=line.ahead + 1)
    assert loads.answer_s(line, load_s) <= loads.answer_s(longer, load_s)


@given(LINES, st.floats(0.001, 5))
def test_who_gives_way_holds_nobody_up(line: LoadLine, load_s: float) -> None:
    assert loads.answer_s(line, load_s) == loads.answer_s(replace(line, giving_way=0), load_s)


def test_a_line_of_two_places_takes_half_a_load_for_each_that_is_ahead_until_it_is_measured() -> None:
    assert loads.answer_s(LoadLine(2, 0, 0.0), 0.2) == 0.2
    assert loads.answer_s(LoadLine(2, 5, 0.0), 0.2) == 0.2 + 4 * 0.1
    assert loads.answer_s(LoadLine(2, 5, 0.05), 0.2) == 0.4


def test_the_interval_follows_what_is_measured() -> None:
    interval_s = 0.0
    for _ in range(40):
        interval_s = loads.smoothed(interval_s, 0.1)
    assert abs(interval_s - 0.1) < 1e-9
