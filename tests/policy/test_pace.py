"""Predictions of runs and of when they are over."""

import numpy as np
import pytest
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
    assert abs(pace.seconds(known, 100) - 0.2) < 1e-3
    assert 0.1 < pace.seconds(known, 50) < 0.2


def test_a_model_that_has_seen_only_short_texts_is_not_taken_for_a_slow_one() -> None:
    """MiniLM on two cores: 7 ms for 30 tokens, 62 for 480. Were 3 tokens in 5 ms the whole truth, 480 would be expected in 800."""
    known = pace.UNKNOWN
    for _ in range(60):
        known = pace.updated(known, ran_s=0.005, units=3)
    assert 0.04 < pace.seconds(known, 480) < 0.1


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


@given(st.lists(st.tuples(st.floats(0.021, 5), st.floats(0, 5)), max_size=60))
def test_the_drift_stays_within_bounds_whatever_is_measured(waits: list[tuple[float, float]]) -> None:
    drift = 1.0
    for predicted_s, waited_s in waits:
        drift = pace.drifted(drift, predicted_s, waited_s)
        assert 1.0 <= drift <= 4.0


def test_what_waits_twice_as_long_as_predicted_is_predicted_to() -> None:
    drift = 1.0
    for _ in range(300):
        drift = pace.drifted(drift, predicted_s=0.4, waited_s=0.8)
    assert abs(drift - 2.0) < 0.05
    load = Load(workers=2, ahead_s=0.8, running_s=0.0, drift=drift)
    assert pace.is_too_late(load, run_s=0.01, left_s=0.85)
    assert not pace.is_too_late(Load(2, 0.8, 0.0), run_s=0.01, left_s=0.85)
    assert pace.drifted(2.0, predicted_s=0.001, waited_s=0.05) == 2.0, "a turn of the loop is no drift"


def test_an_answer_is_there_when_all_of_a_shared_run_is_done() -> None:
    load = Load(workers=2, ahead_s=0.8, running_s=0.0, shared_run_s=0.06)
    assert pace.answer_s(load, run_s=0.005) == 0.46


def test_runs_are_short_where_a_guest_may_come_and_longer_where_all_wait_long() -> None:
    def room(waited_s: float, *, others: bool = True) -> float:
        return pace.batch_room_s(longest_s=0.06, are_others_about=others, waited_s=waited_s)

    assert room(5.0, others=False) == float("inf")
    assert [round(room(waited), 3) for waited in (0.0, 0.1, 0.32, 0.48, 0.96, 9.0)] == [0.02, 0.02, 0.02, 0.03, 0.06, 0.06]


@pytest.mark.parametrize(
    ("own_s", "away_s", "left_s", "due_in_s", "may"),
    [
        (0.0, 0.0, 5.0, float("inf"), True),
        (1.0, 0.9, 5.0, float("inf"), True),
        (1.0, 1.1, 5.0, float("inf"), False),
        (1.0, 0.0, 5.0, 5.1, True),
        (1.0, 0.0, 5.0, 5.05, False),
    ],
)
def test_a_long_run_gives_half_of_its_time_away_at_most_and_is_not_late_for_it(
    own_s: float, away_s: float, left_s: float, due_in_s: float, may: bool
) -> None:
    assert pace.may_give_way(own_s=own_s, away_s=away_s, left_s=left_s, due_in_s=due_in_s, guest_s=0.06) is may
