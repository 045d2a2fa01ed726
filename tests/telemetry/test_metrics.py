"""Metrics: what is told, and that callers cannot make it grow."""

import re

from flatshare.core.readings import ModelMetric
from flatshare.telemetry.metrics import UNKNOWN, GatewayMetrics, InstanceReading


def reading(**changes: object) -> InstanceReading:
    fields: dict[str, object] = {
        "endpoint": "e", "instance": "i", "models": 2, "copies": 1, "anonymous_bytes": 3, "mapped_bytes": 4, "anonymous_limit_bytes": 5,
        "memory_limit_bytes": 6, "in_flight": 7, "waiting": 5, "decisions": {"load": 8, "evict": 1}, "evictions": {"mapped": 1},
        "refusals": {"too_late": 9}, "queues": {"short": 3, "long": 2, "load": 1}, "pressure_bytes": 10, "thrash_index": 0.25,
        "lacks_memory": True, "stalled_percent": 1.5, "refaults_per_s": 20.0, "major_faults_per_s": 30.0,
    }  # fmt: skip
    return InstanceReading(**(fields | changes))  # type: ignore[arg-type]  # fields of several types


def values(text: bytes) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text.decode(), re.MULTILINE)}


def test_the_phases_of_a_request_add_up_to_its_time() -> None:
    metrics = GatewayMetrics()
    metrics.answered("e", 200, 1.0, {"queue": 0.1, "load": 0.5, "model": 0.3})
    metrics.answered("e", 200, 0.5, {"queue": 0.1, "model": 0.3})
    said = values(metrics.render([], {"e"}))
    sums = {phase: said[f'flatshare_phase_seconds_sum{{endpoint="e",phase="{phase}"}}'] for phase in ("queue", "load", "model", "overhead")}
    assert {phase: round(value, 9) for phase, value in sums.items()} == {"queue": 0.2, "load": 0.5, "model": 0.6, "overhead": 0.2}
    assert said['flatshare_request_seconds_sum{endpoint="e"}'] == 1.5
    assert said['flatshare_cold_start_seconds_count{endpoint="e"}'] == 1


def test_a_request_that_reached_no_instance_has_no_phases() -> None:
    metrics = GatewayMetrics()
    metrics.answered("e", 503, 0.1, {})
    assert not [name for name in values(metrics.render([], {"e"})) if name.startswith("flatshare_phase_seconds")]


def test_errors_and_denials_are_counted_by_code() -> None:
    metrics = GatewayMetrics()
    metrics.failed("ValidationError")
    metrics.denied("AccessDeniedException")
    said = values(metrics.render([], set()))
    assert said['flatshare_errors_total{code="ValidationError"}'] == 1
    assert said['flatshare_denials_total{code="AccessDeniedException"}'] == 1


def test_what_was_counted_for_an_endpoint_goes_with_it() -> None:
    metrics = GatewayMetrics()
    for endpoint in ("stays", "goes", UNKNOWN):
        metrics.answered(endpoint, 200, 0.1, {"load": 0.1})
    before, after = metrics.render([], {"stays", "goes"}), metrics.render([], {"stays"})
    assert b'"goes"' in before
    assert b'"goes"' not in after
    for endpoint in ("stays", UNKNOWN):
        assert f'flatshare_requests_total{{endpoint="{endpoint}",status="200"}} 1.0'.encode() in after
    metrics.answered("goes", 200, 0.1, {})
    assert b'flatshare_requests_total{endpoint="goes",status="200"} 1.0' in metrics.render([], {"stays", "goes"})


def test_instances_are_told_of_as_they_are_and_no_more_when_they_are_gone() -> None:
    metrics = GatewayMetrics()
    said = values(metrics.render([reading()], {"e"}))
    where = 'endpoint="e",instance="i"'
    assert said[f"flatshare_queue_depth{{{where}}}"] == 5
    assert said[f"flatshare_instance_in_flight{{{where}}}"] == 7
    assert said[f'flatshare_evictions{{cause="mapped",{where}}}'] == 1
    assert said[f'flatshare_cache_decisions{{{where},kind="load"}}'] == 8
    assert said[f'flatshare_refusals{{{where},reason="too_late"}}'] == 9
    assert [said[f'flatshare_queue_waiting{{class="{name}",{where}}}'] for name in ("short", "long", "load")] == [3, 2, 1]
    assert said[f"flatshare_memory_pressure_bytes{{{where}}}"] == 10
    assert (said[f"flatshare_thrash_index{{{where}}}"], said[f"flatshare_lacks_memory{{{where}}}"]) == (0.25, 1)
    signs = ("memory_stalled_percent", "refaults_per_second", "major_faults_per_second")
    assert [said[f"flatshare_{name}{{{where}}}"] for name in signs] == [1.5, 20, 30]
    assert not [name for name in values(metrics.render([], {"e"})) if "instance=" in name]


def test_a_models_histogram_is_told_as_prometheus_reads_it() -> None:
    took = ModelMetric("took", "histogram", "Seconds", {"step": "all"}, 13.0, (1.0, 2.5), (2, 2, 1))
    text = GatewayMetrics().render([reading(model_metrics=(took,))], {"e"})
    assert b"# TYPE took histogram" in text
    said = {name: value for name, value in values(text).items() if name.startswith("took")}
    place = 'endpoint="e",instance="i"'
    buckets = {f'took_bucket{{{place},le="{bound}",step="all"}}': count for bound, count in (("1.0", 2), ("2.5", 4), ("+Inf", 5))}
    assert said == {**buckets, f'took_count{{{place},step="all"}}': 5, f'took_sum{{{place},step="all"}}': 13}
