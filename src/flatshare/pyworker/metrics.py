"""`pb_utils.MetricFamily` and its metrics: counted in the worker, told to the instance after a run and in pauses."""

import threading
from bisect import bisect_left
from itertools import pairwise
from math import isfinite
from typing import Any, Protocol

from flatshare.pyworker.tensors import TritonModelException

COUNTER, GAUGE, HISTOGRAM = KINDS = ("counter", "gauge", "histogram")


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
    """One number by its labels. Made by `MetricFamily.Metric`, as the others are."""

    def __init__(self, family: "MetricFamily", labels: dict[str, str], told: Told) -> None:
        self._family = family
        self._labels = labels
        self._told = told
        self._lock = threading.Lock()
        self._value = 0.0
        self._untold = 0.0

    def observe(self, value: float) -> None:
        raise TritonModelException(f"only a histogram observes {value}: increment a counter, set a gauge")

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
        return self._about(grown if self._family.kind == COUNTER else self._value)

    def _about(self, value: float) -> dict[str, Any]:
        family = self._family
        return {"name": family.name, "description": family.description, "kind": family.kind, "labels": self._labels, "value": value}

    def _change(self, value: float) -> None:
        with self._lock:
            self._value = float(value)
        self._told.metric_changed(self)


class Histogram(Metric):
    """What was observed, counted by the buckets that it fell into, and its sum."""

    def __init__(self, family: "MetricFamily", labels: dict[str, str], told: Told, bounds: list[float]) -> None:
        super().__init__(family, labels, told)
        self._bounds = bounds
        self._counts = self._no_counts()

    def observe(self, value: float) -> None:
        """A bucket takes what is not above its bound; what is above all of them is counted too."""
        if not isfinite(value):
            raise TritonModelException(f"a histogram observes finite numbers here, not {value}")
        with self._lock:
            self._value += value
            self._counts[bisect_left(self._bounds, value)] += 1
        self._told.metric_changed(self)

    def increment(self, value: float) -> None:
        raise TritonModelException(f"a histogram cannot be incremented by {value}: observe it")

    def set(self, value: float) -> None:
        raise TritonModelException(f"a histogram cannot be set to {value}: observe it")

    def value(self) -> float:
        raise TritonModelException("a histogram has no single value")

    def take(self) -> dict[str, Any]:
        """For the host: what was observed since the last time."""
        with self._lock:
            counts, self._counts = self._counts, self._no_counts()
            grown, self._value = self._value, 0.0
        return self._about(grown) | {"bounds": self._bounds, "counts": counts}

    def _no_counts(self) -> list[int]:
        return [0] * (len(self._bounds) + 1)


class MetricFamily:
    """Metrics of one name, by labels."""

    COUNTER, GAUGE, HISTOGRAM = KINDS
    told: Told
    """Bound by the copy of these utilities that each model has, see backend_utils.py."""

    def __init__(self, name: str, description: str, kind: str) -> None:
        if kind not in KINDS:
            raise TritonModelException(f"a metric family is a COUNTER, a GAUGE or a HISTOGRAM, not {kind}")
        self.name, self.description, self.kind = str(name), str(description), kind

    def Metric(self, labels: dict[str, str] | None = None, buckets: Any = None) -> Metric:  # noqa: N802  # the API's own name
        """The series of these labels; of a histogram, `buckets` are their upper bounds, ascending."""
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        named = {str(key): str(value) for key, value in (labels or {}).items()}
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if self.kind == HISTOGRAM:
            return Histogram(self, named, self.told, _bounds(buckets))
        if buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        return Metric(self, named, self.told)


def _bounds(buckets: list[Any] | None) -> list[float]:
    if buckets is None:
        raise TritonModelException("Failed to create metric. Missing required buckets.")
    bounds = [float(bound) for bound in buckets]
    if any(not a < b for a, b in pairwise(bounds)) or not all(map(isfinite, bounds)):
        raise TritonModelException("Failed to create metric. Bucket boundaries must be finite and strictly sorted.")
    return bounds
