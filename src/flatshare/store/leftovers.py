"""What tools leave in a model's folder and is no part of it: hidden files, and what Python compiled when it ran the model's code."""

from collections.abc import Iterable


def is_left_out(parts: Iterable[str]) -> bool:
    """By the names along a path below the model's folder."""
    return any(part.startswith(".") or part == "__pycache__" for part in parts)
