"""Counts per model, bounded."""

import pytest

from flatshare.core.ids import EndpointName, TargetModel
from flatshare.gateway import statistics
from flatshare.gateway.statistics import ModelStatistics

E, M = EndpointName("e"), TargetModel("acme/query")


def test_successes_and_failures_are_counted_apart_with_their_times() -> None:
    counted = ModelStatistics()
    counted.succeeded(E, M, "1", took_s=0.25, ran_s=0.125)
    counted.succeeded(E, M, "1", took_s=0.25, ran_s=0.5)
    counted.failed(E, M, "", took_s=1.0)
    [counts] = [version.counts for version in counted.of(E, M, "")]
    assert (counts.success.count, counts.success.ns) == (2, 500_000_000)
    assert (counts.ran.count, counts.ran.ns) == (2, 625_000_000)
    assert counts.waited.ns == 125_000_000, "never less than nothing"
    assert (counts.fail.count, counts.fail.ns) == (1, 1_000_000_000)
    assert counts.last_wall_ms > 0
    assert [(m.endpoint, m.target, m.version) for m in counted] == [(E, M, "1")]


def test_versions_are_counted_apart() -> None:
    counted = ModelStatistics()
    for version in ("1", "3", "3"):
        counted.succeeded(E, M, version, took_s=0.25, ran_s=0.125)
    assert [(each.version, each.counts.success.count) for each in counted.of(E, M, "")] == [("1", 1), ("3", 2)]
    assert [(each.version, each.counts.success.count) for each in counted.of(E, M, "3")] == [("3", 2)]


@pytest.mark.parametrize(("asked", "blamed"), [("1", "1"), ("3", "3"), ("", "3"), ("made-up", "3")])
def test_a_failure_is_that_of_the_version_asked_for_but_no_caller_makes_one_up(asked: str, blamed: str) -> None:
    counted = ModelStatistics()
    for version in ("1", "3"):
        counted.succeeded(E, M, version, took_s=0.25, ran_s=0.125)
    counted.failed(E, M, asked, took_s=0.5)
    assert [each.version for each in counted if each.counts.fail.count] == [blamed]


def test_a_model_that_was_not_asked_has_zeros_and_is_in_no_list() -> None:
    counted = ModelStatistics()
    assert [(each.version, each.counts.success.count) for each in counted.of(E, M, "")] == [("1", 0)]
    assert list(counted) == []


def test_the_models_asked_longest_ago_are_forgotten_first() -> None:
    counted = ModelStatistics()
    most = statistics._MOST_MODELS
    for number in range(most):
        counted.succeeded(E, TargetModel(str(number)), "1", took_s=0.1, ran_s=0.1)
    counted.succeeded(E, TargetModel("0"), "1", took_s=0.1, ran_s=0.1)
    counted.succeeded(E, TargetModel("new"), "1", took_s=0.1, ran_s=0.1)
    assert len(list(counted)) == most
    assert [each.counts.success.count for each in counted.of(E, TargetModel("0"), "")] == [2]
    assert [each.counts.success.count for each in counted.of(E, TargetModel("1"), "")] == [0]
