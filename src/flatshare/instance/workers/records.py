"""What the pool keeps of models and requests."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.call import Scalar
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered."""

    outputs: tuple[NamedArray, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Rider:
    """A request on its way; `done` is settled exactly once, and skipped if its caller has left."""

    number: int
    ask: Ask
    rows: int
    done: "asyncio.Future[list[Answer]]"
    parts: list[Answer] = field(default_factory=list)

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
        self._going_on = 0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._count()
        self._going_on += 1
        try:
            yield
        finally:
            self._count()
            self._going_on -= 1

    @property
    def recent_s(self) -> float:
        self._count()
        return self._worked_s

    def _count(self) -> None:
        now_s = self._loop.time()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        self._worked_s = self._worked_s * max(0.0, 1 - passed_s / _FADES_S) + self._going_on * passed_s


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
    chain: frozenset[str] = frozenset()
    """Keys of this model and of those that wait for its present run."""

    @property
    def waiting_rows(self) -> int:
        return sum(rider.rows for rider in self.queue)
