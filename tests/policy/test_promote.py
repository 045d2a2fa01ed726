"""Who gets a prepacked copy: whom it would have paid for by now, and nobody who asked long ago."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey
from flatshare.policy import promote
from flatshare.policy.promote import HORIZON_S, Candidate, Trial

RUNS = st.floats(0, 1e6)


def candidate(name: str, runs: float, saved_s: float = 0.002, build_s: float = 0.15) -> Candidate:
    return Candidate(ModelKey(name), runs, saved_s, build_s)


def test_a_copy_is_worth_building_once_it_would_have_saved_what_it_costs() -> None:
    assert promote.worth_building([candidate("a", 74)]) == []
    assert promote.worth_building([candidate("a", 76)]) == [candidate("a", 76)]


def test_who_gains_most_comes_first() -> None:
    often, seldom, long = candidate("often", 1_000), candidate("seldom", 100), candidate("long", 300, saved_s=0.01)
    assert promote.worth_building([seldom, often, long]) == [long, often, seldom]
    assert often.gain == pytest.approx(1_000 * 0.002 / HORIZON_S)


@given(RUNS)
def test_what_is_worth_building_is_not_cold_and_what_is_cold_is_not_worth_building(runs: float) -> None:
    one = candidate("a", runs)
    assert not (promote.worth_building([one]) and promote.has_gone_cold(one))


def test_between_the_two_lie_ten_minutes_of_silence() -> None:
    """So that a copy is not built and dropped in turns."""
    just_built = 75.0
    assert not promote.has_gone_cold(candidate("a", promote.faded(just_built, 0, 600)))
    assert promote.has_gone_cold(candidate("a", promote.faded(just_built, 0, 660)))


@given(RUNS, st.integers(0, 1_000), st.floats(0, 1_000), st.floats(0, 1_000))
def test_a_count_fades_alike_however_often_it_is_looked_at(runs: float, new: int, first_s: float, second_s: float) -> None:
    in_two = promote.faded(promote.faded(runs, 0, first_s), new, second_s)
    assert in_two == pytest.approx(promote.faded(runs, new, first_s + second_s))


def test_a_steady_stream_is_counted_as_its_rate_over_the_horizon() -> None:
    runs = 0.0
    for _ in range(5_000):
        runs = promote.faded(runs, 10, 2.0)
    assert runs == pytest.approx(10 / (1 - math.exp(-2 / HORIZON_S)))


def test_a_copy_pays_if_it_is_a_tenth_faster() -> None:
    assert Trial(0.0111, 0.01, 0.1).pays
    assert not Trial(0.0109, 0.01, 0.1).pays
    assert Trial(0.007, 0.005, 0.1).saved_s == pytest.approx(0.002)


def test_other_copies_give_way_to_twice_their_gain() -> None:
    one = candidate("a", 1_000)
    assert promote.may_push_out(one, one.gain / 2)
    assert not promote.may_push_out(one, one.gain / 1.9)


def test_of_two_trials_the_quickest_runs_count() -> None:
    """On busy cores a single trial may say anything."""
    disturbed, calm = Trial(0.009, 0.009, 0.3), Trial(0.007, 0.005, 0.15)
    assert disturbed.with_another(calm) == calm.with_another(disturbed) == calm.with_another(None) == calm
