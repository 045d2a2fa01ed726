"""What the pool keeps of models and requests."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import exp
from pathlib import Path

from flatshare.core.call import Scalar
from flatshare.core.ids import NOBODY, Tenant
from flatshare.core.repository import Unit
from flatshare.pyworker.frames import NamedArray
from flatshare.wire.triton_config import TritonConfig

_FADES_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A model for a worker: which one, and where its files are."""

    key: str
    """Unique in this instance: the lease's number, model and version."""
    identity: str
    """The same for the same model after an unload: what a quarantine holds on to."""
    unit: Unit
    config: TritonConfig
    folder: Path
    python: Path | None
    """Of its environment; None for ours."""
    private_bytes: int
    """Predicted."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one model."""

    inputs: tuple[NamedArray, ...]
    wanted: tuple[str, ...] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    request_id: str = ""
    chain: frozenset[str] = frozenset()
    """Keys of the models that wait for the answer: their workers cannot run this one."""
    tenant: Tenant = NOBODY
    deadline_s: float | None = None
    """By the event loop's clock. Workers are not told: whoever asks stops waiting then."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered."""

    outputs: tuple[NamedArray, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    is_final: bool = True
    """No other comes after it."""


@dataclass(slots=True, eq=False)
class Rider:
    """A request on its way; `done` is settled exactly once, and skipped if its caller has left."""

    number: int
    ask: Ask
    rows: int
    done: "asyncio.Future[list[Answer]]"
    on_part: Callable[[Answer], None] | None = None
    """Hears each answer of a decoupled model as it comes; without it they are collected."""
    parts: list[Answer] = field(default_factory=list)

    def hear(self, answer: Answer) -> None:
        if self.on_part is None:
            self.parts.append(answer)
        elif not self.done.done():
            self.on_part(answer)

    def settle(self, answers: list[Answer]) -> None:
        if not self.done.done():
            self.done.set_result(answers)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Work:
    """How long a model has worked in the last while. Used on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worked_s = 0.0
        self._seen_s = self._loop.time()
        self._began_s: list[float] = []

    @contextmanager
    def going_on(self, *, is_run: bool) -> Iterator[None]:
        """A load keeps a worker busy while it lasts; it says nothing about how much work the model brings."""
        began_s = self._loop.time()
        self._began_s.append(began_s)
        try:
            yield
        finally:
            self._began_s.remove(began_s)
            if is_run:
                self._fade()
                self._worked_s += self._loop.time() - began_s

    @property
    def recent_s(self) -> float:
        """What goes on now included."""
        self._fade()
        return self._worked_s + sum(self._seen_s - began_s for began_s in self._began_s)

    def _fade(self) -> None:
        now_s = self._loop.time()
        self._worked_s *= exp((self._seen_s - now_s) / _FADES_S)
        self._seen_s = now_s


@dataclass(slots=True, eq=False)
class Model:
    """A model that lives in workers."""

    place: Place
    config: TritonConfig
    """As its own code has completed it."""
    queue: deque[Rider] = field(default_factory=deque)
    work: Work = field(default_factory=Work)
    grew: asyncio.Event = field(default_factory=asyncio.Event)
    runners: int = 0
    moved_s: float = float("-inf")
    look_again_s: float | None = None
    """How long its next request at most waits before it chooses its worker again."""
    used_s: float = 0.0
    is_leaving: bool = False
    tenant: Tenant = NOBODY
    chain: frozenset[str] = frozenset()
    """Keys of this model and of those that wait for its present run."""

    @property
    def waiting_rows(self) -> int:
        return sum(rider.rows for rider in self.queue)
