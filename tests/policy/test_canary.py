"""When a version on trial is taken back."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.release import CanaryLimits
from flatshare.policy.canary import Tally, reason_to_end

GOOD = Tally(calls=1000, errors=0, warm_calls=1000, warm_s=10.0)
LIMITS = CanaryLimits(max_disagreement=0.1)


def test_a_version_that_does_as_well_goes_on() -> None:
    assert reason_to_end(GOOD, replace(GOOD, calls=100, warm_calls=100, warm_s=1.5, compared=50, differed=5), LIMITS) is None


def test_errors_beyond_the_old_versions_end_it() -> None:
    assert reason_to_end(GOOD, Tally(calls=40, errors=3), LIMITS) == "3 of 40 calls failed, 0 of 1000 on the old version"
    noisy = replace(GOOD, errors=100)
    assert reason_to_end(noisy, Tally(calls=40, errors=5), LIMITS) is None


def test_a_version_that_always_fails_is_not_given_all_of_its_calls() -> None:
    assert reason_to_end(GOOD, Tally(calls=2, errors=2), LIMITS) is not None
    assert reason_to_end(GOOD, Tally(calls=1, errors=1), LIMITS) is None


def test_slower_calls_end_it_once_there_are_enough() -> None:
    slow = Tally(calls=30, warm_calls=30, warm_s=0.9)
    assert reason_to_end(GOOD, slow, LIMITS) == "calls took 30.0 ms on average, 10.0 ms on the old version"
    assert reason_to_end(GOOD, replace(slow, warm_calls=19, warm_s=0.57), LIMITS) is None


def test_other_answers_end_it_only_if_that_was_asked_for() -> None:
    differing = Tally(calls=30, compared=30, differed=4)
    assert reason_to_end(GOOD, differing, LIMITS) == "4 of 30 answers differed from the old version's"
    assert reason_to_end(GOOD, differing, CanaryLimits()) is None


TALLIES = st.builds(Tally, *[st.integers(0, 200)] * 2, st.integers(0, 200), st.floats(0, 100), *[st.integers(0, 200)] * 2)


@given(TALLIES, TALLIES)
def test_more_errors_never_help_a_canary(old: Tally, new: Tally) -> None:
    if reason_to_end(old, new, LIMITS) is not None:
        assert reason_to_end(old, replace(new, errors=new.errors + 1, calls=new.calls), LIMITS) is not None
