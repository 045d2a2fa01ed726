"""What Prometheus reads at `/metrics`. Labels are bounded: endpoints and codes, never models or tenants."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class InstanceReading:
    """What one instance's books say, in bytes and counts."""

    endpoint: str
    instance: str
    models: int
    anonymous_bytes: int
    mapped_bytes: int
    memory_limit_bytes: int
    decisions: dict[str, int]


class GatewayMetrics:
    """One registry per gateway, so that tests and several gateways in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("flatshare_requests", "InvokeEndpoint calls answered", ["endpoint", "status"], registry=self.registry)
        self._seconds = Histogram("flatshare_request_seconds", "Time to the answer", ["endpoint"], buckets=_SECONDS, registry=self.registry)
        self._cold = Histogram(
            "flatshare_cold_start_seconds",
            "Time that cold requests waited for a load",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("flatshare_requests_in_flight", "InvokeEndpoint calls under way", registry=self.registry)
        labels = ["endpoint", "instance"]
        self._models = Gauge("flatshare_models_resident", "Models in memory", labels, registry=self.registry)
        self._anonymous = Gauge("flatshare_anonymous_bytes", "Private memory of the instance", labels, registry=self.registry)
        self._mapped = Gauge("flatshare_mapped_bytes", "Distinct weight bytes of the resident models", labels, registry=self.registry)
        self._limit = Gauge("flatshare_memory_limit_bytes", "Memory budget of the instance", labels, registry=self.registry)
        self._decisions = Gauge(
            "flatshare_cache_decisions",
            "Decisions of the model cache since the instance began",
            [*labels, "kind"],
            registry=self.registry,
        )

    def answered(self, endpoint: str, status: int, seconds: float, cold_start_s: float | None) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if cold_start_s is not None:
            self._cold.labels(endpoint).observe(cold_start_s)

    def render(self, readings: list[InstanceReading]) -> bytes:
        """The exposition text, with the instances as they are now."""
        for gauge in (self._models, self._anonymous, self._mapped, self._limit, self._decisions):
            gauge.clear()
        for reading in readings:
            labels = (reading.endpoint, reading.instance)
            self._models.labels(*labels).set(reading.models)
            self._anonymous.labels(*labels).set(reading.anonymous_bytes)
            self._mapped.labels(*labels).set(reading.mapped_bytes)
            self._limit.labels(*labels).set(reading.memory_limit_bytes)
            for kind, count in reading.decisions.items():
                self._decisions.labels(*labels, kind).set(count)
        return generate_latest(self.registry)
