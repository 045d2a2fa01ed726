"""What models count for themselves (`pb_utils.MetricFamily`), added up over the workers of an instance, and bounded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from flatshare.core.readings import KINDS, ModelMetric
from flatshare.telemetry.log import get_logger

log = get_logger("workers")
_MOST_FAMILIES, _MOST_SERIES, _MOST_LABELS, _LONGEST = 100, 1000, 8, 128
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_OURS = ("flatshare_", "python_", "process_")
_TAKEN = {"endpoint", "instance"}
_Key = tuple[str, tuple[tuple[str, str], ...]]


class ModelMetrics:
    """Owned by the event loop. Models invent names and labels, so both are few and short: what is beyond is dropped and counted."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._series: dict[_Key, _Series] = {}
        self._room = _MOST_SERIES
        self.dropped = 0

    def take(self, series: list[Mapping[str, Any]], model: str) -> None:
        """What a worker tells. It may be anything."""
        for one in series:
            if not self._enter(one):
                self.dropped += 1
                if self.dropped in {1, 10, 100, 1000}:
                    log.warning("metric_dropped", model=model, metric=str(one.get("name"))[:_LONGEST], dropped=self.dropped)

    def readings(self) -> list[ModelMetric]:
        return [
            ModelMetric(name, *self._kinds[name], dict(labels), series.value, series.bounds, tuple(series.counts))
            for (name, labels), series in self._series.items()
        ]

    def _enter(self, one: Mapping[str, Any]) -> bool:
        name, kind, labels = str(one.get("name")), str(one.get("kind")), dict(one.get("labels", {}))
        told = _Series(float(one.get("value", 0)), tuple(map(float, one.get("bounds", ()))), list(map(int, one.get("counts", ()))))
        if not _is_proper(name, kind, labels) or not told.is_whole(kind):
            return False
        if self._kinds.get(name, (kind, ""))[0] != kind or (name not in self._kinds and len(self._kinds) >= _MOST_FAMILIES):
            return False
        key = (name, tuple(sorted(labels.items())))
        known = self._series.get(key)
        if known is None:
            if told.lines > self._room:
                return False
            known = self._series[key] = _Series(0.0, told.bounds, [0] * len(told.counts))
            self._room -= known.lines
        elif known.bounds != told.bounds:
            return False
        self._kinds.setdefault(name, (kind, str(one.get("description", ""))[:_LONGEST]))
        known.value = told.value if kind == "gauge" else known.value + told.value
        known.counts = [a + b for a, b in zip(known.counts, told.counts, strict=True)]
        return True


@dataclass(slots=True)
class _Series:
    """What a worker has told of one, or what all of them have."""

    value: float
    bounds: tuple[float, ...]
    counts: list[int]

    @property
    def lines(self) -> int:
        """What it takes of /metrics: a histogram has a line for each bucket, and three more."""
        return len(self.bounds) + 3 if self.counts else 1

    def is_whole(self, kind: str) -> bool:
        buckets = len(self.bounds) + 1 if kind == "histogram" else 0
        is_ladder = all(map(isfinite, self.bounds)) and list(self.bounds) == sorted(set(self.bounds))
        return isfinite(self.value) and is_ladder and len(self.counts) == buckets and min(self.counts, default=0) >= 0


def _is_proper(name: str, kind: str, labels: Mapping[str, str]) -> bool:
    if kind not in KINDS or not all(_NAME.fullmatch(one) for one in (name, *labels)) or name.startswith(_OURS):
        return False
    if _TAKEN & labels.keys() or (kind == "histogram" and "le" in labels):
        return False
    return len(labels) <= _MOST_LABELS and all(len(value) <= _LONGEST for value in labels.values())
