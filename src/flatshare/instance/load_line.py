"""Step 5g: the lines of loads: bounded, by fair share, and not joined by those who could not wait for the end of theirs."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TypeVar

from flatshare.core.errors import Abandoned, DiskFull, OutOfMemory, Overloaded, OverQuota, TooLate
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.settings import QueueSettings
from flatshare.instance.holding import Holding
from flatshare.instance.turnstile import Turnstile
from flatshare.policy import loads
from flatshare.policy.loads import LoadLine, Start

T = TypeVar("T")


class Loads:
    """Owned by the cache. `turns` lets a few load at once. Who comes from this disk does not wait for what the store sends."""

    def __init__(self, queue: QueueSettings, parallel_fetches: int) -> None:
        self._queue = queue
        self.turns = Turnstile(queue.parallel_loads)
        self._from_disk, self._from_store = _Line(queue.parallel_loads), _Line(parallel_fetches)

    def require_place(self, tenant: Tenant, under_way: Sequence[Tenant]) -> None:
        """Raises Overloaded or OverQuota if too many load already; `under_way` has the tenant of each."""
        if len(under_way) >= self._queue.max_waiting_loads:
            raise Overloaded(f"{len(under_way)} models are being loaded already: call again later, or add instances")
        if under_way.count(tenant) >= self._queue.max_waiting_loads_per_tenant:
            raise OverQuota(f"{under_way.count(tenant)} models of tenant {tenant} are being loaded already, its limit: call again later")

    def start(self, entries: Iterable[Holding], load_s: float, deadline_s: float | None, *, is_fetch: bool) -> Start:
        """Whether to begin a load for a request with this deadline, by the event loop's clock."""
        left_s = None if deadline_s is None else deadline_s - asyncio.get_running_loop().time()
        return loads.start(self._line(is_fetch=is_fetch).state(_under_way(entries, is_fetch=is_fetch)), load_s, left_s)

    def over(self, entry: Holding, entries: Iterable[Holding]) -> None:
        """Its load has ended, well or not; those of others go on."""
        if not entry.gives_way:
            others = _under_way(entries, is_fetch=entry.is_fetch)
            self._line(is_fetch=entry.is_fetch).over(has_more=any(not other.gives_way for other in others))

    def _line(self, *, is_fetch: bool) -> "_Line":
        return self._from_store if is_fetch else self._from_disk


class _Line:
    """Loads that wait for the same thing."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._interval_s = 0.0
        self._ended_s: float | None = None
        """When the last load was over, if others have been under way ever since."""

    def state(self, under_way: list[Holding]) -> LoadLine:
        giving_way = sum(entry.gives_way for entry in under_way)
        return LoadLine(self._places, len(under_way) - giving_way, self._interval_s, giving_way)

    def over(self, *, has_more: bool) -> None:
        """A load that somebody waited for has ended."""
        now_s = asyncio.get_running_loop().time()
        if self._ended_s is not None:
            self._interval_s = loads.smoothed(self._interval_s, now_s - self._ended_s)
        self._ended_s = now_s if has_more else None


def _under_way(entries: Iterable[Holding], *, is_fetch: bool) -> list[Holding]:
    """Those of one line that go on or wait."""
    return [entry for entry in entries if entry.is_fetch == is_fetch and not entry.ready.done()]


def would_be_late(remaining_s: float, deadline_s: float | None) -> bool:
    """For a request with this deadline, by the event loop's clock."""
    return deadline_s is not None and asyncio.get_running_loop().time() + remaining_s > deadline_s


def ended_as(error: BaseException, entry: Holding) -> str:
    """The journal's word for a load that brought nothing."""
    if isinstance(error, OutOfMemory):
        return "refuse"
    return "give_up" if isinstance(error, Abandoned) or was_not_worth_it(error, entry) else "fail"


def was_not_worth_it(error: BaseException, entry: Holding) -> bool:
    """Nobody waits for it, and the disk has no room for such."""
    return entry.gives_way and isinstance(error, DiskFull)


def too_late(key: ModelKey, begun: Start) -> TooLate:
    """Why a request is not let wait for its model."""
    more = "it is being loaded for the next one" if begun is Start.FOR_THE_NEXT else "other models are loaded first"
    return TooLate(f"model {key} is not in memory, and would not be before the deadline; {more}: call again later")


async def arrival(ready: "asyncio.Future[T]", deadline_s: float | None) -> T:
    """What a load brings, for one of its riders. Raises TooLate at the deadline: the load goes on, and its rider has left."""
    try:
        async with asyncio.timeout_at(deadline_s) as patience:
            return await asyncio.shield(ready)
    except TimeoutError as error:
        if not patience.expired():
            raise
        raise TooLate("the model was still being loaded when the deadline passed: call again later, or allow more time") from error
