"""How the traffic of an endpoint moves from its old fleet to a new one: at once, in two steps, in equal steps, or batch by batch.

step      0              1               2 … n             settled
share     0 ── ready ──► f₁ ── wait ───► f₂ … 1 ── wait ──► the old fleet stops
blue/green: both fleets are whole until the end, which comes the termination wait later
rolling:    the new fleet grows by a batch ahead of the share, the old one shrinks a batch behind it
"""

import math
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Size:
    """Part of a fleet: CAPACITY_PERCENT or INSTANCE_COUNT."""

    value: int
    is_percent: bool

    def share_of(self, count: int) -> float:
        return self.value / 100 if self.is_percent else self.value / max(1, count)


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a DeploymentConfig asks for; by itself, everything at once and without a wait."""

    size: Size | None = None
    """Of the first step, or of each; None for all at once."""
    is_canary: bool = False
    """A first step of that size, then the rest."""
    is_rolling: bool = False
    wait_s: float = 0.0
    """After each step."""
    termination_wait_s: float = 0.0
    """After the last, before the old fleet stops."""
    timeout_s: float | None = None
    """For all of it; then it is rolled back."""

    def shares(self, count: int) -> tuple[float, ...]:
        """Of the traffic, after each step, for a new fleet of so many instances."""
        if self.size is None:
            return (1.0,)
        first = min(1.0, self.size.share_of(count))
        if self.is_canary:
            return (first, 1.0) if first < 1.0 else (1.0,)
        steps = math.ceil(round(1 / first, 9))  # a tenth ten times is a whole, though not in binary
        return (*(first * step for step in range(1, steps)), 1.0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come. Times are the wall clock's, for they outlive the process."""

    step: int = 0
    since_s: float = 0.0
    """When the step was made."""
    began_s: float = 0.0


AT_ONCE = Rollout()
NOT_BEGUN = Progress()


class Move(Enum):
    WAIT = "not ready, or the wait is not over"
    SHIFT = "one more step"
    SETTLE = "the old fleet may stop"
    TIME_OUT = "the whole takes longer than it may"


@dataclass(frozen=True, slots=True)
class Decision:
    move: Move
    due_s: float | None = None
    """Wall clock: when to decide again, if nothing else happens before."""


def decide(rollout: Rollout, progress: Progress, count: int, *, is_ready: bool, now_s: float) -> Decision:
    """What to do now; `is_ready` says that what the next step sends requests to, or the whole new fleet, answers."""
    steps = len(rollout.shares(count))
    deadline_s = math.inf if rollout.timeout_s is None else progress.began_s + rollout.timeout_s
    if now_s >= deadline_s:
        return Decision(Move.TIME_OUT)
    is_last = progress.step == steps
    wait_s = rollout.wait_s + (rollout.termination_wait_s if is_last else 0.0)
    due_s = progress.since_s + wait_s if progress.step else now_s
    if not is_ready or now_s < due_s:
        soonest_s = min(deadline_s, due_s if due_s > now_s else math.inf)
        return Decision(Move.WAIT, None if math.isinf(soonest_s) else soonest_s)
    is_plain = steps == 1 and rollout.wait_s + rollout.termination_wait_s == 0.0
    return Decision(Move.SETTLE if is_last or is_plain else Move.SHIFT)


def share(rollout: Rollout, progress: Progress, count: int) -> float:
    """Of the traffic, that goes to the new fleet now."""
    return rollout.shares(count)[progress.step - 1] if progress.step else 0.0


def new_count(rollout: Rollout, progress: Progress, total: int, variant: int) -> int:
    """How many instances of a variant the new fleet should have now: enough for the next step."""
    shares = rollout.shares(total)
    return math.ceil(round(variant * shares[min(progress.step, len(shares) - 1)], 9)) if rollout.is_rolling else variant


def old_count(rollout: Rollout, progress: Progress, total: int, variant: int) -> int:
    """How many of the old fleet stay: all, or what the step before the last one has not replaced."""
    if not rollout.is_rolling or progress.step <= 1:
        return variant
    return variant - math.floor(round(variant * rollout.shares(total)[progress.step - 2], 9))
