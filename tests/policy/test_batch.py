"""Who may ride along: no run is too long or too large, and nobody's deadline is missed for another's sake."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy import batch
from flatshare.policy.batch import Batch, Rider

RIDERS = st.builds(Rider, st.floats(0.001, 0.1), st.floats(1, 200), st.one_of(st.just(float("inf")), st.floats(1.0, 2.0)))


@given(RIDERS, st.lists(RIDERS, max_size=30), st.floats(0.01, 0.5), st.floats(10, 600))
def test_whoever_joins_makes_nobody_late_and_no_run_too_long(first: Rider, others: list[Rider], most_s: float, most_units: float) -> None:
    run, riders = batch.with_rider(Batch(most_s, most_units), first), [first]
    for other in others:
        if batch.may_join(run, other, now_s=1.0):
            run, riders = batch.with_rider(run, other), [*riders, other]
    took_s = sum(rider.run_s for rider in riders)
    assert abs(run.run_s - took_s) < 1e-9
    if len(riders) > 1:
        assert took_s <= most_s + 1e-9
        assert sum(rider.units for rider in riders) <= most_units + 1e-6
        assert all(1.0 + took_s <= rider.deadline_s for rider in riders)


def test_a_first_rider_is_never_refused_however_large_it_is() -> None:
    run = batch.with_rider(Batch(0.01, 10), Rider(9.0, 5_000, 0.0))
    assert run.is_full
    assert not batch.may_join(run, Rider(0.001, 1, float("inf")), now_s=0.0)


def test_without_deadlines_and_limits_all_of_them_ride() -> None:
    run = batch.with_rider(Batch(float("inf"), 100), Rider(0.01, 30, float("inf")))
    assert batch.may_join(run, Rider(0.01, 70, float("inf")), now_s=5.0)
    assert not batch.may_join(run, Rider(0.01, 71, float("inf")), now_s=5.0)
