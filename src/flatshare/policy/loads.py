"""Is a load worth beginning for a request that has a deadline? One that ends too late takes the link from those that would not."""

from dataclasses import dataclass
from enum import Enum

from flatshare.core.sizes import MIB

_SMOOTHING = 0.2
_BYTES_PER_FETCH = 4 * MIB  # an import moves 280 MB a second (90 MB: 0.32 s); the smallest takes 3 ms and its round trips to the store


class Start(Enum):
    FOR_THIS = "for this request"
    FOR_THE_NEXT = "for the next request"
    """The request is refused at once; the model is loaded all the same, since nobody else needs the place."""
    NOT_NOW = "not now"


@dataclass(frozen=True, slots=True)
class LoadLine:
    """The loads of an instance at one moment."""

    places: int
    """That many load at once."""
    ahead: int
    """Under way or waiting."""
    interval_s: float
    """From the end of one load to the end of the next, while there is a line; zero as long as there was none."""
    giving_way: int = 0
    """Others, that nobody waits for: they hold up nobody who does."""


def answer_s(line: LoadLine, load_s: float) -> float:
    """Until a load that begins now is over; `load_s` is what it takes if it does not have to wait."""
    interval_s = line.interval_s or load_s / line.places
    return load_s + interval_s * max(0, line.ahead + 1 - line.places)


def start(line: LoadLine, load_s: float, left_s: float | None) -> Start:
    """What to do for a request whose answer is wanted in `left_s`, or whenever it comes."""
    if left_s is None or answer_s(line, load_s) <= left_s:
        return Start.FOR_THIS
    return Start.FOR_THE_NEXT if line.ahead + line.giving_way < line.places else Start.NOT_NOW


def fetch_cost_bytes(size_bytes: int) -> float:
    """How much of its tenant's share of the fetches an artifact takes."""
    return float(_BYTES_PER_FETCH + size_bytes)


def smoothed(interval_s: float, latest_s: float) -> float:
    return interval_s + _SMOOTHING * (latest_s - interval_s) if interval_s else latest_s
