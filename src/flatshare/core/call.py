"""One inference, as data: what goes into an engine and what comes out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TextCall:
    """Texts to be embedded, in order."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One float32 row per text, and what the tokenizer made of each."""

    vectors: NDArray[np.float32]
    """[texts, width]"""
    tokens: tuple[int, ...]
    """Tokens that were run, special tokens included."""
    truncated: tuple[int, ...]
    """Indices of texts that were longer than the model admits; only their beginning counted."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where an instance finds a model: the artifact, and the prefix that its files may not leave."""

    uri: str
    root: str
