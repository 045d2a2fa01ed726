"""From logits to scores."""

import numpy as np
from numpy.typing import NDArray

from flatshare.core.spec import Activation


def scores(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Over the last axis; softmax and sigmoid in the forms that cannot overflow."""
    if activation == "identity":
        return logits
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
        return shares
    small = np.exp(-np.abs(logits))
    chances: NDArray[np.float32] = np.where(logits >= 0, 1, small) / (1 + small)
    return chances.astype(np.float32)
