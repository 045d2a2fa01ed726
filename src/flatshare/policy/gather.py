"""Which waiting requests of a model run together."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request: its rows, and what has to be equal for two requests to share a run."""

    rows: int
    shape: tuple[object, ...]


def take(waiting: Sequence[Waiting], *, most_rows: int, preferred: Sequence[int] = ()) -> int:
    """How many from the front run now: as many as fit, all of one shape; if a preferred size is within reach, exactly that."""
    fits, rows = 0, 0
    best, sizes = 0, {size for size in preferred if size <= most_rows}
    for request in waiting:
        if request.shape != waiting[0].shape or (fits and rows + request.rows > most_rows):
            break
        fits, rows = fits + 1, rows + request.rows
        if rows in sizes:
            best = fits
    return best or fits
