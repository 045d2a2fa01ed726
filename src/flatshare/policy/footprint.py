"""How much private memory a model will take: predicted from its sizes, corrected by what was measured on this machine."""

_LEAST_SHARE = 0.5  # a load that found its memory in the heap's free chunks measures too little


def own_bytes(predicted: int, measured: int | None) -> int:
    """What to reserve for a model alone: what its loads took at most, but never less than half of the prediction."""
    return predicted if measured is None else max(measured, int(predicted * _LEAST_SHARE))
