"""What is reserved for a model alone."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy.footprint import own_bytes

BYTES = st.integers(0, 10**9)


@given(BYTES, BYTES)
def test_a_measurement_that_is_more_is_believed_and_one_that_is_less_by_half(predicted: int, measured: int) -> None:
    reserved = own_bytes(predicted, measured)
    assert reserved >= measured
    assert reserved >= predicted // 2
    assert reserved <= max(predicted, measured)


@given(BYTES)
def test_without_a_measurement_the_prediction_counts(predicted: int) -> None:
    assert own_bytes(predicted, None) == predicted
