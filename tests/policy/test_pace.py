"""Predictions of runs and of when they are over."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.call import InferCall
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.policy import pace
from flatshare.policy.pace import Load


def test_the_pace_follows_what_was_measured() -> None:
    known = pace.UNKNOWN
    for _ in range(60):
        known = pace.updated(known, ran_s=0.2, units=100)
    assert abs(pace.seconds(known, 50) - 0.1) < 1e-3


def test_texts_count_by_length_and_tensors_by_elements() -> None:
    short = InferCall({"text": text_tensor("text", ["a word"])})
    long = InferCall({"text": text_tensor("text", ["a word " * 100])})
    ids = InferCall({"input_ids": Tensor.of("input_ids", np.zeros((2, 8), np.int64))})
    assert pace.units_of(long) > 40 * pace.units_of(short)
    assert pace.units_of(ids) == 16


@given(st.integers(1, 8), st.floats(0, 10), st.floats(0, 10), st.floats(0.001, 1), st.floats(0, 20))
def test_what_is_admitted_would_be_in_time_by_the_prediction(workers: int, ahead: float, running: float, run: float, left: float) -> None:
    load = Load(workers, ahead, running)
    if not pace.is_too_late(load, run, left):
        assert pace.wait_s(load) + run <= left
    if pace.wait_s(load) + run > left:
        assert pace.is_too_late(load, run, left)


def test_a_long_run_waits_only_for_the_last_worker_and_only_while_short_ones_come() -> None:
    def waits(workers: int, running: int, since_s: float) -> bool:
        return pace.must_wait_for_short(workers=workers, long_running=running, since_short_s=since_s, keep_s=2.0)

    assert waits(2, 1, 0.5)
    assert not waits(2, 0, 0.5)
    assert not waits(2, 1, 2.5)
    assert not waits(1, 0, 0.5)
    assert waits(4, 3, 0.0)
    assert not waits(4, 2, 0.0)
