"""Counts per model, bounded."""

from flatshare.core.ids import EndpointName, TargetModel
from flatshare.gateway import statistics
from flatshare.gateway.statistics import ModelStatistics

E, M = EndpointName("e"), TargetModel("acme/query")


def test_successes_and_failures_are_counted_apart_with_their_times() -> None:
    counted = ModelStatistics()
    counted.note(E, M, is_success=True, took_s=0.25, ran_s=0.125)
    counted.note(E, M, is_success=True, took_s=0.25, ran_s=0.5)
    counted.note(E, M, is_success=False, took_s=1.0, ran_s=0.0)
    counts = counted.of(E, M)
    assert (counts.success.count, counts.success.ns) == (2, 500_000_000)
    assert (counts.ran.count, counts.ran.ns) == (2, 625_000_000)
    assert counts.waited.ns == 125_000_000, "never less than nothing"
    assert (counts.fail.count, counts.fail.ns) == (1, 1_000_000_000)
    assert counts.last_wall_ms > 0
    assert [(m.endpoint, m.target) for m in counted] == [(E, M)]


def test_a_model_that_was_not_asked_has_zeros_and_is_in_no_list() -> None:
    counted = ModelStatistics()
    assert counted.of(E, M).success.count == 0
    assert list(counted) == []


def test_the_models_asked_longest_ago_are_forgotten_first() -> None:
    counted = ModelStatistics()
    most = statistics._MOST_MODELS
    for number in range(most):
        counted.note(E, TargetModel(str(number)), is_success=True, took_s=0.1, ran_s=0.1)
    counted.note(E, TargetModel("0"), is_success=True, took_s=0.1, ran_s=0.1)
    counted.note(E, TargetModel("new"), is_success=True, took_s=0.1, ran_s=0.1)
    assert len(list(counted)) == most
    assert counted.of(E, TargetModel("0")).success.count == 2
    assert counted.of(E, TargetModel("1")).success.count == 0
