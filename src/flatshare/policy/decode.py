"""Which token comes next: scores in, one token out. Chance is an argument."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
_FIRST_LOOK = 1024  # candidates that are sorted at first: nearly always enough for top-p, and 20 times cheaper than a vocabulary


@dataclass(frozen=True, slots=True)
class Sampling:
    """A temperature of 0 is greedy, `top_k` 0 and `top_p` 1 admit all."""

    temperature: float
    top_k: int
    top_p: float


def penalised(logits: Scores, seen: NDArray[np.int64], penalty: float) -> Scores:
    """Tokens that were seen become less likely (Keskar et al., 2019): positive scores are divided, negative multiplied."""
    if penalty == 1.0 or not len(seen):
        return logits
    changed = logits.copy()
    values = changed[seen]
    changed[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return changed


def without(logits: Scores, forbidden: tuple[int, ...]) -> Scores:
    changed = logits.copy()
    changed[list(forbidden)] = -np.inf
    return changed


def only(logits: Scores, permitted: NDArray[np.int64]) -> Scores:
    """Every token but the permitted ones becomes impossible."""
    changed = np.full_like(logits, -np.inf)
    changed[permitted] = logits[permitted]
    return changed


def log_probabilities(logits: Scores) -> Scores:
    """Along the last axis; what is impossible stays so."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - highest
    result: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def choose(logits: Scores, sampling: Sampling, dice: float) -> int:
    """One token. `dice` is from 0 up to but not including 1; greedy ignores it, and takes the first of equals."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, weights = candidates(logits, sampling)
    bounds = np.cumsum(weights)
    return int(tokens[min(int(np.searchsorted(bounds, dice * bounds[-1], side="right")), len(tokens) - 1)])


def candidates(logits: Scores, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, likeliest first, and their probabilities: first temperature, then top-k, then top-p."""
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        kept = _highest(scaled, sampling.top_k)
        return _nucleus(kept, scaled[kept], sampling.top_p, float(np.exp(scaled[kept] - scaled[kept[0]]).sum()))
    total = float(np.exp(scaled - scaled.max()).sum())
    if sampling.top_p < 1.0 and len(logits) > _FIRST_LOOK:
        kept = _highest(scaled, _FIRST_LOOK)
        if np.exp(scaled[kept] - scaled[kept[0]]).sum() >= sampling.top_p * total:
            return _nucleus(kept, scaled[kept], sampling.top_p, total)
    order = np.argsort(-scaled, kind="stable")
    return _nucleus(order, scaled[order], sampling.top_p, total)


def _highest(scaled: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the highest scores, highest first; of equals the first."""
    part = np.sort(np.argpartition(-scaled, count - 1)[:count])
    highest: NDArray[np.int64] = part[np.argsort(-scaled[part], kind="stable")]
    return highest


def _nucleus(
    tokens: NDArray[np.int64], scaled: NDArray[np.float64], top_p: float, total: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fewest of the likeliest whose probabilities reach `top_p`: at least one."""
    weights = np.exp(scaled - scaled[0]) / total
    possible = int(np.count_nonzero(weights))
    reached = int(np.searchsorted(np.cumsum(weights), top_p, side="left")) + 1 if top_p < 1.0 else possible
    count = max(1, min(reached, possible))
    return tokens[:count], weights[:count] / weights[:count].sum()
