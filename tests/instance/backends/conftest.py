"""The matrix of differences between our answers and transformers'; tests/conftest.py prints it at the end of a run."""

from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

CLOSE = 1e-5
Array = NDArray[np.float32]


class Matrix(Protocol):
    def __call__(self, family: str, task: str, source: str, actual: Array, expected: Array) -> None:
        """Note the difference, and fail if it is too large."""


@pytest.fixture
def matrix(record_property: Any) -> Matrix:
    def compare(family: str, task: str, source: str, actual: Array, expected: Array) -> None:
        assert actual.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max()))  # 1e-5 of unit vectors and probabilities; logits may be larger
        difference = float(np.abs(actual - expected).max()) / scale
        record_property("equality", (family, task, source, difference))
        assert difference <= CLOSE

    return compare
