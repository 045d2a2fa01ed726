"""What Prometheus reads of shadow variants at `/metrics`, and what `/flatshare/status` says of them."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NewType

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Count

from flatshare.core.ids import EndpointName, VariantName

Outcome = NewType("Outcome", str)
AGREED = Outcome("agreed")
DIFFERED = Outcome("differed")
FAILED = Outcome("failed")
"""The shadow gave no answer, or an error where production gave an answer."""
DROPPED = Outcome("dropped")
"""Not copied: too many copies were under way."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_RECENT = 512


@dataclass(frozen=True, slots=True)
class ShadowOf:
    """One shadow variant of one endpoint."""

    endpoint: EndpointName
    variant: VariantName


@dataclass(frozen=True, slots=True)
class Comparison:
    """One request, answered by both."""

    outcome: Outcome
    production_s: float
    shadow_s: float
    cosine: float | None = None


@dataclass(slots=True)
class _Tally:
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    recent: deque[Comparison] = field(default_factory=lambda: deque(maxlen=_RECENT))


class ShadowMetrics:
    """Labels are bounded: endpoints and their shadow variants, never models or tenants."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["endpoint", "variant"]
        self._copies = Count(
            "flatshare_shadow_copies", "Requests that were to be copied to a shadow variant", [*labels, "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "flatshare_shadow_seconds",
            "Time to the answer of requests that were copied, on either side",
            [*labels, "side"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tallies: dict[ShadowOf, _Tally] = {}

    def dropped(self, shadow: ShadowOf) -> None:
        self._count(shadow, DROPPED)

    def compared(self, shadow: ShadowOf, comparison: Comparison) -> None:
        self._count(shadow, comparison.outcome).recent.append(comparison)
        self._seconds.labels(shadow.endpoint, shadow.variant, "production").observe(comparison.production_s)
        self._seconds.labels(shadow.endpoint, shadow.variant, "shadow").observe(comparison.shadow_s)

    def report(self, present: Sequence[ShadowOf]) -> list[dict[str, Any]]:
        """One record for each of the shadows that are there; what is known of others is forgotten."""
        self._tallies = {shadow: self._tallies.get(shadow, _Tally()) for shadow in present}
        return [_record(shadow, tally) for shadow, tally in self._tallies.items()]

    def _count(self, shadow: ShadowOf, outcome: Outcome) -> _Tally:
        self._copies.labels(shadow.endpoint, shadow.variant, outcome).inc()
        tally = self._tallies.setdefault(shadow, _Tally())
        tally.outcomes[outcome] += 1
        return tally


def _record(shadow: ShadowOf, tally: _Tally) -> dict[str, Any]:
    cosines = [comparison.cosine for comparison in tally.recent if comparison.cosine is not None]
    return {
        "endpoint": shadow.endpoint,
        "variant": shadow.variant,
        "outcomes": {outcome: tally.outcomes[outcome] for outcome in (AGREED, DIFFERED, FAILED, DROPPED)},
        "recent": {
            "requests": len(tally.recent),
            "production_p50_ms": _median_ms([comparison.production_s for comparison in tally.recent]),
            "shadow_p50_ms": _median_ms([comparison.shadow_s for comparison in tally.recent]),
            "cosine_mean": sum(cosines) / len(cosines) if cosines else None,
            "cosine_min": min(cosines, default=None),
        },
    }


def _median_ms(seconds: list[float]) -> float | None:
    return round(median(seconds) * 1e3, 3) if seconds else None
