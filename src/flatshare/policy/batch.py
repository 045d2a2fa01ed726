"""Who may ride along in a shared run? As many as fit, as long as nobody comes late for it."""

from dataclasses import dataclass, replace

_RUN_MARGIN = 1.2  # of a run's time: it errs both ways, and the answer has a way to go


@dataclass(frozen=True, slots=True)
class Rider:
    """One request that waits."""

    run_s: float
    """What it would add to a run."""
    units: float
    deadline_s: float
    """Infinite if it has none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A run that is being put together. It may grow to `most_s` and `most_units`, and has to be over at `due_s`."""

    most_s: float
    most_units: float
    run_s: float = 0.0
    units: float = 0.0
    due_s: float = float("inf")

    @property
    def is_full(self) -> bool:
        """Nobody has to be looked for."""
        return self.run_s >= self.most_s or self.units >= self.most_units


def with_rider(batch: Batch, rider: Rider) -> Batch:
    return replace(batch, run_s=batch.run_s + rider.run_s, units=batch.units + rider.units, due_s=min(batch.due_s, rider.deadline_s))


def may_join(batch: Batch, rider: Rider, now_s: float) -> bool:
    """Is there room, and are all answers, which come together, in time with one more?"""
    grown = with_rider(batch, rider)
    return grown.units <= batch.most_units and grown.run_s <= batch.most_s and now_s + grown.run_s * _RUN_MARGIN <= grown.due_s
