"""What Prometheus reads at `/metrics`. Labels are bounded: endpoints in service, instances and codes; never models, tenants or callers."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest

from flatshare.core.readings import ModelMetric

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_FAMILIES: Mapping[str, type[_Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_M = TypeVar("_M", Counter, Histogram)
UNKNOWN = "unknown"
"""Stands for every endpoint that is not in service: a caller cannot make label values."""


@dataclass(frozen=True, slots=True)
class InstanceReading:
    """What one instance's books say, in bytes and counts."""

    endpoint: str
    instance: str
    models: int
    copies: int
    """Prepacked ones, of some of the models."""
    anonymous_bytes: int
    mapped_bytes: int
    anonymous_limit_bytes: int
    memory_limit_bytes: int
    in_flight: int
    waiting: int
    decisions: dict[str, int]
    evictions: dict[str, int]
    """By cause."""
    refusals: dict[str, int]
    """By reason."""
    queues: dict[str, int]
    """Who waits, by class."""
    pressure_bytes: int
    """Of the memory limit: not to be used for the moment."""
    thrash_index: float
    lacks_memory: bool
    stalled_percent: float
    """Of the time some task waited for memory (PSI)."""
    refaults_per_s: float
    major_faults_per_s: float
    model_metrics: tuple[ModelMetric, ...] = ()
    """What models count for themselves."""


class GatewayMetrics:
    """One registry per gateway, so that tests and several gateways in a process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("flatshare_requests", "InvokeEndpoint calls answered", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram("flatshare_request_seconds", "Time to the answer", ["endpoint"], buckets=_SECONDS, registry=registry)
        self._phases = Histogram(
            "flatshare_phase_seconds", "Where the time went", ["endpoint", "phase"], buckets=_SECONDS, registry=registry
        )
        self._cold = Histogram(
            "flatshare_cold_start_seconds", "Time that cold requests waited for a load", ["endpoint"], buckets=_SECONDS, registry=registry
        )
        self._errors = Counter("flatshare_errors", "Answers that are errors, of every road", ["code"], registry=registry)
        self._denials = Counter("flatshare_denials", "Requests turned away at the entry", ["code"], registry=registry)
        self.in_flight = Gauge("flatshare_requests_in_flight", "InvokeEndpoint calls under way", registry=registry)
        self.disk_bytes = Gauge("flatshare_disk_bytes", "Imported models on disk", registry=registry)
        self.disk_limit_bytes = Gauge("flatshare_disk_limit_bytes", "Disk budget of imported models", registry=registry)
        self._gauges = _instance_gauges(registry)
        self._endpoints: dict[str, dict[object, Any]] = {}

    def answered(self, endpoint: str, status: int, seconds: float, phases_s: Mapping[str, float]) -> None:
        """One InvokeEndpoint call; `phases_s` says how long it queued, loaded and ran, as far as it came."""
        self._of(self._requests, endpoint, str(status)).inc()
        self._of(self._seconds, endpoint).observe(seconds)
        for phase, phase_s in phases_s.items():
            self._of(self._phases, endpoint, phase).observe(phase_s)
        if phases_s:
            self._of(self._phases, endpoint, "overhead").observe(max(0.0, seconds - sum(phases_s.values())))
        if "load" in phases_s:
            self._of(self._cold, endpoint).observe(phases_s["load"])

    def _of(self, metric: _M, endpoint: str, *more: str) -> _M:
        """The one series with these labels, looked up once: the library's search takes longer than the count that it is for."""
        known = self._endpoints.setdefault(endpoint, {})
        found: _M | None = known.get((metric, more))
        if found is None:
            found = known[metric, more] = metric.labels(endpoint, *more)
        return found

    def failed(self, code: str) -> None:
        """An answer with this error code went out, on any road."""
        self._errors.labels(code).inc()

    def denied(self, code: str) -> None:
        """Somebody was turned away."""
        self._denials.labels(code).inc()

    def render(self, readings: list[InstanceReading], endpoints: Collection[str]) -> bytes:
        """The exposition text, with the instances as they are now. What is told of endpoints other than `endpoints` is dropped."""
        for gone in self._endpoints.keys() - {*endpoints, UNKNOWN}:
            for metric in (self._requests, self._seconds, self._phases, self._cold):
                metric.remove_by_labels({"endpoint": gone})
            del self._endpoints[gone]
        for gauge in self._gauges:
            gauge.show(readings)
        return generate_latest(self.registry) + generate_latest(_ModelMetrics(readings))


class _ModelMetrics:
    """What models count, under their own names and labels, and the endpoint's and instance's. The instances have bounded it."""

    def __init__(self, readings: list[InstanceReading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[_Family]:
        families: dict[str, _Family] = {}
        for reading in self._readings:
            for metric in reading.model_metrics:
                kind = _FAMILIES[metric.kind]
                family = families.setdefault(metric.name, kind(metric.name, metric.description))
                if isinstance(family, kind):  # another instance may have another idea of the name
                    labels = {**metric.labels, "endpoint": reading.endpoint, "instance": reading.instance}
                    _add(family, labels, metric)
        yield from families.values()


def _add(family: _Family, labels: dict[str, str], metric: ModelMetric) -> None:
    if not isinstance(family, HistogramMetricFamily):
        name = f"{family.name}_total" if isinstance(family, CounterMetricFamily) else family.name
        family.add_sample(name, labels, metric.value)
        return
    for bound, count in zip((*map(str, metric.bounds), "+Inf"), accumulate(metric.counts), strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{family.name}_count", labels, sum(metric.counts))
    family.add_sample(f"{family.name}_sum", labels, metric.value)


class _InstanceGauge:
    """One number, or several by kind, of every instance."""

    def __init__(self, gauge: Gauge, numbers: Callable[[InstanceReading], Mapping[str, int] | float]) -> None:
        self._gauge = gauge
        self._numbers = numbers

    def show(self, readings: list[InstanceReading]) -> None:
        self._gauge.clear()
        for reading in readings:
            numbers = self._numbers(reading)
            if isinstance(numbers, int | float):
                self._gauge.labels(reading.endpoint, reading.instance).set(numbers)
                continue
            for kind, count in numbers.items():
                self._gauge.labels(reading.endpoint, reading.instance, kind).set(count)


def _instance_gauges(registry: CollectorRegistry) -> list[_InstanceGauge]:
    def gauge(name: str, text: str, numbers: Callable[[InstanceReading], Mapping[str, int] | float], *more: str) -> _InstanceGauge:
        return _InstanceGauge(Gauge(f"flatshare_{name}", text, ["endpoint", "instance", *more], registry=registry), numbers)

    return [
        gauge("models_resident", "Models in memory", lambda r: r.models),
        gauge("prepacked_copies", "Models in memory that have a prepacked copy of their weights", lambda r: r.copies),
        gauge("anonymous_bytes", "Private memory of the instance", lambda r: r.anonymous_bytes),
        gauge("anonymous_limit_bytes", "What of the budget may be private", lambda r: r.anonymous_limit_bytes),
        gauge("mapped_bytes", "Distinct weight bytes of the resident models", lambda r: r.mapped_bytes),
        gauge("memory_limit_bytes", "Memory budget of the instance", lambda r: r.memory_limit_bytes),
        gauge("instance_in_flight", "Requests that the engine runs or has queued", lambda r: r.in_flight),
        gauge("queue_depth", "Requests that wait for an engine thread", lambda r: r.waiting),
        gauge("cache_decisions", "Decisions of the model cache since the instance began", lambda r: r.decisions, "kind"),
        gauge("evictions", "Models that left memory since the instance began", lambda r: r.evictions, "cause"),
        gauge("refusals", "Requests that the instance refused since it began", lambda r: r.refusals, "reason"),
        gauge("queue_waiting", "Who waits: short runs, long runs, loads", lambda r: r.queues, "class"),
        gauge("memory_pressure_bytes", "Of the memory budget: not to be used for the moment", lambda r: r.pressure_bytes),
        gauge("thrash_index", "Share of the last two minutes' loads that brought back what had just left", lambda r: r.thrash_index),
        gauge("lacks_memory", "1 if the thrash index has been above 0.3 for two minutes", lambda r: int(r.lacks_memory)),
        gauge("memory_stalled_percent", "Of the last ten seconds some task waited for memory (PSI)", lambda r: r.stalled_percent),
        gauge("refaults_per_second", "Evicted file pages that are read again", lambda r: r.refaults_per_s),
        gauge("major_faults_per_second", "Of the instance: times that it waited for a mapped page", lambda r: r.major_faults_per_s),
    ]
