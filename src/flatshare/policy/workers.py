"""Which worker runs a model, when another worker is worth it, and when a model is left alone for a while."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

_FAILURES = 3
_WITHIN_S = 600.0
_FIRST_BACK_OFF_S = 30.0
_LONGEST_BACK_OFF_S = 3600.0
_MOVE_EVERY_S = 5.0  # a move costs a load; more often would be thrashing


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One worker of a code version."""

    name: str
    models: int
    """Models that live there."""
    is_busy: bool
    busy_s: float
    """Time that it has worked in the last while, for the choice between idle ones."""


class Action(Enum):
    """What a request does for its model's turn."""

    WAIT = "wait"
    MOVE = "move"
    START = "start"


@dataclass(frozen=True, slots=True)
class Choice:
    """`worker` is where the model goes; None with START: to the one that is started."""

    action: Action
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Until when a model is refused, and which time it is."""

    until_s: float
    episode: int


def home(workers: Sequence[WorkerLoad]) -> str | None:
    """Where a new model lives: the worker with the fewest models. None: start one, for the first model."""
    return min(workers, key=lambda worker: (worker.models, worker.is_busy, worker.busy_s, worker.name)).name if workers else None


def choose(own: WorkerLoad, others: Sequence[WorkerLoad], *, waits_for_itself: bool, since_move_s: float, most: int) -> Choice:
    """For a request whose model's worker is `own`: wait there, or let the model move to a worker that has nothing to do.

    A model whose own run keeps its worker busy gains nothing by moving.
    """
    if not own.is_busy or waits_for_itself or since_move_s < _MOVE_EVERY_S or own.models < 2:
        return Choice(Action.WAIT)
    idle = [worker for worker in others if not worker.is_busy]
    if idle:
        return Choice(Action.MOVE, min(idle, key=lambda worker: (worker.busy_s, worker.models, worker.name)).name)
    return Choice(Action.START) if 1 + len(others) < most else Choice(Action.WAIT)


def quarantine(failures_s: Sequence[float], now_s: float, last: Quarantine | None) -> Quarantine | None:
    """After a model has brought down a worker: whether it is refused from now on. One that has been refused before has one chance."""
    recent = [at for at in failures_s if now_s - at <= _WITHIN_S]
    if len(recent) < _FAILURES and last is None:
        return None
    episode = last.episode + 1 if last is not None else 1
    return Quarantine(now_s + min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2 ** (episode - 1)), episode)
