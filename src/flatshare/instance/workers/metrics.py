"""What models count for themselves (`pb_utils.MetricFamily`), added up over the workers of an instance, and bounded."""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from flatshare.core.readings import ModelMetric
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
        self._values: dict[_Key, float] = {}
        self.dropped = 0

    def take(self, series: list[Mapping[str, Any]], model: str) -> None:
        """What a worker tells. It may be anything."""
        for one in series:
            if not self._enter(one):
                self.dropped += 1
                if self.dropped in {1, 10, 100, 1000}:
                    log.warning("metric_dropped", model=model, metric=str(one.get("name"))[:_LONGEST], dropped=self.dropped)

    def readings(self) -> list[ModelMetric]:
        return [ModelMetric(name, *self._kinds[name], dict(labels), value) for (name, labels), value in self._values.items()]

    def _enter(self, one: Mapping[str, Any]) -> bool:
        name, kind, labels, value = str(one.get("name")), str(one.get("kind")), dict(one.get("labels", {})), float(one.get("value", 0))
        if not _is_proper(name, labels) or not isfinite(value):
            return False
        if self._kinds.get(name, (kind, ""))[0] != kind or (name not in self._kinds and len(self._kinds) >= _MOST_FAMILIES):
            return False
        key = (name, tuple(sorted(labels.items())))
        if key not in self._values and len(self._values) >= _MOST_SERIES:
            return False
        self._kinds.setdefault(name, (kind, str(one.get("description", ""))[:_LONGEST]))
        self._values[key] = value + (self._values.get(key, 0.0) if kind == "counter" else 0.0)
        return True


def _is_proper(name: str, labels: Mapping[str, str]) -> bool:
    names = [name, *labels]
    if not all(_NAME.fullmatch(one) for one in names) or name.startswith(_OURS) or _TAKEN & labels.keys():
        return False
    return len(labels) <= _MOST_LABELS and all(len(value) <= _LONGEST for value in labels.values())
