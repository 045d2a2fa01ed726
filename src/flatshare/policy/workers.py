"""Which worker runs a model, when another worker is worth it, and when a model is left alone for a while."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from flatshare.core.ids import Tenant

_FAILURES = 3
_WITHIN_S = 600.0
_FIRST_BACK_OFF_S = 30.0
_LONGEST_BACK_OFF_S = 3600.0
_MOVE_EVERY_S = 5.0  # a move costs a load; more often would be thrashing
_SOON_S = 0.001
_CLEAR, _CLEAR_SHARE = 1.5, 0.05
"""A move is worth its load if the workers differ by more than half as much again as the model brings, and by a twentieth: less is noise."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """One worker of a code version."""

    name: str
    models: int
    """Models that live there."""
    is_busy: bool
    busy_s: float
    """How long the models that live there have worked in the last while, the present run included."""


class Action(Enum):
    """What a request does for its model's turn."""

    WAIT = "wait"
    MOVE = "move"
    START = "start"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model whose worker is busy with something."""

    busy_s: float
    """As a worker's, for this model alone."""
    since_move_s: float
    is_behind_itself: bool
    """Its own run keeps its worker busy: it gains nothing by moving."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`worker` is where the model goes; None with START: to the one that is started."""

    action: Action
    worker: str | None = None
    again_s: float | None = None
    """When to look again, should nothing happen until then: whoever runs now may be running still, and waiting be worse by then."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Until when a model is refused, and which time it is."""

    until_s: float
    episode: int


def home(workers: Sequence[WorkerLoad]) -> str | None:
    """Where a new model lives: the worker with the fewest models. None: start one, for the first model."""
    return min(workers, key=lambda worker: (worker.models, worker.is_busy, worker.busy_s, worker.name)).name if workers else None


def choose(own: WorkerLoad, others: Sequence[WorkerLoad], model: Waiting, *, most: int) -> Choice:
    """For a request whose model lives in `own`: wait there, or let the model move to a worker that has nothing to do.

    A model moves only if the work is spread more evenly afterwards. Moving to whoever is idle at the moment would keep models going to
    and fro: a move costs a load, and it may leave one worker with most of the work.
    """
    if not own.is_busy or model.is_behind_itself or own.models < 2:
        return Choice(Action.WAIT)
    idle = [worker for worker in others if not worker.is_busy]
    if not idle:
        return Choice(Action.START) if 1 + len(others) < most else Choice(Action.WAIT)
    target = min(idle, key=lambda worker: (worker.busy_s, worker.models, worker.name))
    clear_in_s = max(target.busy_s + _CLEAR * model.busy_s, target.busy_s / (1 - _CLEAR_SHARE)) - own.busy_s
    again_s = max(clear_in_s, _MOVE_EVERY_S - model.since_move_s)
    return Choice(Action.MOVE, target.name) if again_s < 0 else Choice(Action.WAIT, again_s=max(again_s, _SOON_S))


def turns(tenants: Sequence[Tenant], served_s: Mapping[Tenant, float], weight: Callable[[Tenant], float] = lambda _: 1.0) -> list[int]:
    """Who of those who wait, told by their tenants, has the first turn: whose tenant has had least for its weight, then who came first."""
    return sorted(range(len(tenants)), key=lambda index: (served_s.get(tenants[index], 0.0) / weight(tenants[index]), index))


def quarantine(failures_s: Sequence[float], now_s: float, last: Quarantine | None) -> Quarantine | None:
    """After a model has brought down a worker: whether it is refused from now on. One that has been refused before has one chance."""
    recent = [at for at in failures_s if now_s - at <= _WITHIN_S]
    if len(recent) < _FAILURES and last is None:
        return None
    episode = last.episode + 1 if last is not None else 1
    return Quarantine(now_s + min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2 ** (episode - 1)), episode)
