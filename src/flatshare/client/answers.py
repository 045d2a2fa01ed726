"""What the API layer answers, typed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """One vector per text, in the order of the texts."""

    vectors: NDArray[np.float32]
    """[texts, width]"""
    tokens: tuple[int, ...]
    """How many tokens of each text were run; empty if the model does not say."""
    truncated: tuple[int, ...]
    """Indices of the texts that were longer than the model takes."""
    digest: str
    """sha256 of the weights that answered; empty if the server does not say."""


@dataclass(frozen=True, slots=True)
class Label:
    """One class and how sure the model is of it."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage by its index in the call, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Tensors by name."""

    tensors: dict[str, NDArray[Any]]
    digest: str

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.tensors[name]
