"""Percentiles, and the story's own figures to stand beside ours."""

import math
import statistics
from collections.abc import Sequence

# Cold start, cached, and five at once, in seconds, on ml.g4dn.xlarge with one T4 (the deployment that this project reproduces).
STORY = {30: (12.7, 0.03, 0.12), 250: (12.7, 0.05, 0.12), 512: (12.7, 0.13, 0.12)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
