"""`pb_utils.MetricFamily` and its metrics: counted in the worker, told to the instance after a run and in pauses."""

import threading
from typing import Any, Protocol

from flatshare.pyworker.tensors import TritonModelException

COUNTER, GAUGE = "counter", "gauge"


class Told(Protocol):
    """Whom a metric tells that it has changed."""

    def metric_changed(self, metric: "Metric") -> None: ...


class Ledger:
    """Metrics that have changed since the last time they were told. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: dict[int, Metric] = {}

    def metric_changed(self, metric: "Metric") -> None:
        with self._lock:
            self._changed[id(metric)] = metric

    def take(self) -> list[dict[str, Any]]:
        with self._lock:
            changed, self._changed = self._changed, {}
        return [metric.take() for metric in changed.values()]


class Metric:
    """One series. Made by `MetricFamily.Metric`."""

    def __init__(self, family: "MetricFamily", labels: dict[str, str], told: Told) -> None:
        self._family = family
        self._labels = labels
        self._told = told
        self._lock = threading.Lock()
        self._value = 0.0
        self._untold = 0.0

    def increment(self, value: float) -> None:
        if value < 0 and self._family.kind == COUNTER:
            raise TritonModelException("a counter can only be incremented by what is not negative")
        self._change(self._value + value)

    def set(self, value: float) -> None:
        if self._family.kind != GAUGE:
            raise TritonModelException("only a gauge can be set: increment a counter")
        self._change(float(value))

    def value(self) -> float:
        return self._value

    def take(self) -> dict[str, Any]:
        """For the host: a counter's growth since the last time, a gauge's value now."""
        with self._lock:
            grown, self._untold = self._value - self._untold, self._value
        return {
            "name": self._family.name, "description": self._family.description, "kind": self._family.kind, "labels": self._labels,
            "value": grown if self._family.kind == COUNTER else self._value,
        }  # fmt: skip

    def _change(self, value: float) -> None:
        with self._lock:
            self._value = float(value)
        self._told.metric_changed(self)


class MetricFamily:
    """Metrics of one name, by labels."""

    COUNTER, GAUGE = COUNTER, GAUGE
    told: Told
    """Bound by the copy of these utilities that each model has, see backend_utils.py."""

    def __init__(self, name: str, description: str, kind: str) -> None:
        if kind not in {COUNTER, GAUGE}:
            raise TritonModelException(f"a metric family is a COUNTER or a GAUGE here, not {kind}")
        self.name, self.description, self.kind = str(name), str(description), kind

    def Metric(self, labels: dict[str, str] | None = None, buckets: Any = None) -> Metric:  # noqa: N802  # the API's own name
        """The series of these labels."""
        if buckets is not None:
            raise TritonModelException("only histograms have buckets, and those are not served here")
        return Metric(self, {str(key): str(value) for key, value in (labels or {}).items()}, self.told)
