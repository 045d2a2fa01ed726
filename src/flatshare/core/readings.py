"""What instances tell of themselves, for `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("counter", "gauge", "histogram")


@dataclass(frozen=True, slots=True)
class ModelMetric:
    """One series that models with code of their own count."""

    name: str
    kind: str
    """One of KINDS."""
    description: str
    labels: Mapping[str, str]
    value: float
    """Of a histogram: the sum of what was observed."""
    bounds: tuple[float, ...] = ()
    """Of a histogram: how far each of its buckets reaches, ascending."""
    counts: tuple[int, ...] = ()
    """What fell into each bucket, and into none of them."""
