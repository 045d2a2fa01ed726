"""Which models in memory get a second, prepacked copy of their weights: faster, and private memory that only a hot model is worth.

    gain = n · s ÷ H           seconds saved per second: n short runs within the last H = 300 s (faded: n·e^(-age/H)), each by s
    build it once n · s ≥ c    what a copy would have saved by now has reached what building it costs, c seconds of a core
    drop it  once n · s < c/8  it has gone cold

To build as soon as the loss equals the price, knowing nothing of the future, costs at most twice what one would pay who knew it (Karlin et
al., "Competitive snoopy caching", 1988). Where room is short, a copy gives way to one that gains twice as much, and always to a model.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flatshare.core.ids import ModelKey

HORIZON_S = 300.0
_COLD = 8.0
_BETTER = 2.0
_LEAST_SPEEDUP = 1.1
_GUESSED_SAVING = 0.2  # of a mapped run, before the first copy of an architecture was measured


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model in memory."""

    key: ModelKey
    runs: float
    """Short runs within the horizon, faded."""
    saved_s: float
    """What a copy saves of each."""
    build_s: float
    """What making it costs."""

    @property
    def gain(self) -> float:
        """Seconds saved per second."""
        return self.runs * self.saved_s / HORIZON_S


@dataclass(frozen=True, slots=True)
class Trial:
    """What a copy was measured to do, beside the mapped weights."""

    mapped_s: float
    """One short run."""
    copy_s: float
    build_s: float
    """What making it took."""

    def with_another(self, other: "Trial | None") -> "Trial":
        """Of the same architecture: the quickest of both, since whatever disturbs a run makes it longer."""
        if other is None:
            return self
        return Trial(min(self.mapped_s, other.mapped_s), min(self.copy_s, other.copy_s), min(self.build_s, other.build_s))

    @property
    def pays(self) -> bool:
        return self.mapped_s >= _LEAST_SPEEDUP * self.copy_s

    @property
    def saved_s(self) -> float:
        return self.mapped_s - self.copy_s


def faded(runs: float, new: int, elapsed_s: float) -> float:
    """The count of short runs, `elapsed_s` after the last look, with those that came since."""
    return runs * math.exp(-elapsed_s / HORIZON_S) + new


def guessed_saving_s(run_s: float) -> float:
    """Of an architecture without a trial, whose short runs take so long."""
    return _GUESSED_SAVING * run_s


def worth_building(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those whose copy would have paid for itself by now, the largest gain first."""
    ripe = [one for one in candidates if one.runs * one.saved_s >= one.build_s]
    return sorted(ripe, key=lambda one: one.gain, reverse=True)


def has_gone_cold(copy: Candidate) -> bool:
    return _COLD * copy.runs * copy.saved_s < copy.build_s


def may_push_out(newcomer: Candidate, victims_gain: float) -> bool:
    """Other copies, whose gain is so much together: a rate is an estimate, and copies that take turns are built again and again."""
    return newcomer.gain >= _BETTER * victims_gain
