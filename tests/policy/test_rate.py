from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy.rate import Bucket, take


def test_a_second_of_calls_comes_at_once_then_one_at_a_time() -> None:
    bucket: Bucket | None = None
    allowed = []
    for now_s in (0.0, 0.0, 0.0, 0.25, 0.5, 0.5, 10.0, 10.0, 10.0):
        taken = take(bucket, 2.0, now_s)
        bucket = taken.bucket
        allowed.append(taken.is_allowed)
    assert allowed == [True, True, False, False, True, False, True, True, False]


@given(st.floats(0.1, 100), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_never_more_than_the_rate_and_one_burst(rate_rps: float, pauses: list[float]) -> None:
    bucket, now_s, allowed = None, 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        taken = take(bucket, rate_rps, now_s)
        bucket, allowed = taken.bucket, allowed + taken.is_allowed
    assert allowed <= max(1.0, rate_rps) + rate_rps * (now_s - pauses[0]) + 1e-6


def test_a_clock_that_went_back_gives_nothing() -> None:
    assert not take(Bucket(0.5, 100.0), 1.0, 50.0).is_allowed
