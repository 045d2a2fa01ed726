"""Ground floor: whether two models said the same to one request."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from flatshare.wire.texts import as_vectors

MIN_COSINE = 0.999
"""Vectors that point so nearly the same way rank the same neighbours: exports and roundings of one model stay above it."""
_NAMING = ("id", "model", "model_name", "model_version", "parameters")  # who answered, not what


@dataclass(frozen=True, slots=True)
class Agreement:
    is_same: bool
    cosine: float | None = None
    """The mean over the rows, where both answers are vectors of one shape."""


def agreement(one: bytes, other: bytes) -> Agreement:
    """Vectors agree if each pair is nearly parallel, other JSON if it is equal but for the model's name, other bytes if they are equal."""
    try:
        first, second = orjson.loads(one), orjson.loads(other)
    except orjson.JSONDecodeError:
        return Agreement(one == other)
    if not isinstance(first, dict) or not isinstance(second, dict):
        return Agreement(first == second)
    vectors, others = _vectors(first), _vectors(second)
    if vectors is None or others is None or vectors.shape != others.shape:
        return Agreement(_content(first) == _content(second))
    cosines = _cosines(vectors, others)
    return Agreement(bool(cosines.min(initial=1.0) >= MIN_COSINE), float(cosines.mean()) if cosines.size else None)


def _vectors(answer: dict[str, Any]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]] | None":
    try:
        vectors = as_vectors(answer)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return vectors if vectors.ndim == 2 else None


def _cosines(one: "np.ndarray[Any, np.dtype[np.float32]]", other: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, Any]":
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    equal = (one == other).all(axis=1)  # two zero vectors have no angle, and are the same
    return np.where(equal, 1.0, (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0))


def _content(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in _NAMING}
