"""What instances tell of themselves, for `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelMetric:
    """One series that models with code of their own count."""

    name: str
    kind: str
    """`counter` or `gauge`."""
    description: str
    labels: Mapping[str, str]
    value: float
