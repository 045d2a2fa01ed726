"""What the cache and the server ask of an engine."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import Abandoned
from flatshare.core.ids import NOBODY, Tenant
from flatshare.core.signature import Signature
from flatshare.core.spec import StoredModel
from flatshare.policy.promote import Trial


@dataclass(frozen=True, slots=True)
class Footprint:
    """Private memory that a model takes, in bytes, by what shares it.

    `shared` maps what several models have in common (a session, a tokenizer) to its size: it is counted once.
    """

    own_bytes: int
    shared: dict[str, int]


def _nobody_waits(_: "StopSign") -> None:
    """What a run of one part gives way to."""


class StopSign:
    """What a run looks at between its parts: whether anybody waits for its answer still, and whether shorter runs wait for its worker."""

    __slots__ = ("_give_way", "_is_set", "away_s", "parts_left")

    def __init__(self, give_way: Callable[["StopSign"], None] = _nobody_waits) -> None:
        """`give_way` runs what is to go first, if anything is, and returns."""
        self._is_set = False
        self._give_way = give_way
        self.away_s = 0.0
        """How long others ran in its midst."""
        self.parts_left = 0
        """After the one that is under way."""

    def set(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def between_parts(self, left: int) -> None:
        """So many parts are still to come, the next one included. Raises Abandoned if nobody waits for the answer."""
        if self._is_set:
            raise Abandoned("the caller has left")
        began_s = time.perf_counter()
        self._give_way(self)
        self.away_s += time.perf_counter() - began_s
        self.parts_left = left - 1


class LoadedModel(Protocol):
    """A model ready to run, from any worker thread."""

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        """Answer a call that its signature admits. Raises BadInput, and Abandoned soon after `stop` is set."""


class Packable(ABC):
    """A model that may have a prepacked copy of its weights beside the mapped ones, and use it whenever it can (instance/copies.py).

    Like `RemoteModel` a class to inherit from.
    """

    __slots__ = ()
    short_runs: int
    """How many runs it had, with a copy or without, that a copy makes faster."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """What is true of one model's copy is true of those of all models with the same."""

    @property
    @abstractmethod
    def has_copy(self) -> bool:
        """One is in use. A copy that failed in a run is no longer: the mapped weights have answered."""

    @abstractmethod
    def copy_footprint(self) -> Footprint:
        """What a copy takes, at most."""

    @abstractmethod
    def make_copy(self) -> Trial:
        """Make one, try it, and use it from then on. On a thread of its own, while the model runs.

        Raises UnsupportedModel if the engine does not take the architecture, or its answers are other ones.
        """

    @abstractmethod
    def drop_copy(self) -> None:
        """Use it no more; its memory is free when this returns, after the run that may be under way."""


class RemoteModel(ABC):
    """A model that runs in other processes: asked on the event loop, no engine thread waits for it.

    A class to inherit from: whether a model is one is asked at every request, and a Protocol would be asked for each of its members.
    """

    signature: Signature

    @abstractmethod
    def signature_of(self, version: str) -> Signature:
        """Of one version; of the latest for none. Raises UnknownTarget."""

    @abstractmethod
    async def infer(self, call: InferCall, tenant: Tenant = NOBODY, deadline_s: float | None = None) -> InferResult:
        """As `LoadedModel.run`; whose work it is decides about turns, and by its deadline what would be too late is not begun."""

    @abstractmethod
    async def stream(self, call: InferCall, heard: Callable[[InferResult], None], tenant: Tenant = NOBODY) -> None:
        """`heard` is called with each answer as it comes; returns after the last. Raises as `infer`."""

    @abstractmethod
    async def close(self) -> None:
        """Unload it; its memory is free when this returns."""

    def mark_runs(self, marked: "Callable[[LoadedModel], LoadedModel]") -> None:  # noqa: B027  # most have nothing that runs here
        """Wrap what of it runs in this process, so that whoever finds the instance dead knows what it was doing."""


@runtime_checkable
class RemoteBackend(Protocol):
    """An engine whose models may take their time to load, or hang: no loader thread waits for them."""

    async def load_remote(self, stored: StoredModel) -> RemoteModel | None:
        """None: this model is loaded by `load`, on a thread."""


class Backend(Protocol):
    """Loads models. `load` and `shrink` run on a loader thread, while models may be running."""

    def footprint(self, stored: StoredModel) -> Footprint:
        """What `load` will take, predicted before it is done."""

    def load(self, stored: StoredModel) -> LoadedModel:
        """Map the weights and make the model ready. Dropping the last reference to the result unloads it."""

    def shrink(self) -> None:
        """Give memory that is no longer needed back to the system."""

    def statistics(self) -> dict[str, int]:
        """What the engine holds now, by kind, for status reports."""
