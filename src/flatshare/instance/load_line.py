"""Step 5g: the line of loads: bounded, by fair share, and not joined by those who could not wait for its end."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from flatshare.core.errors import Overloaded, OverQuota, TooLate
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.settings import QueueSettings
from flatshare.instance.turnstile import Turnstile
from flatshare.policy import loads
from flatshare.policy.loads import LoadLine, Start

T = TypeVar("T")


class Loads:
    """Owned by the cache. `turns` lets a few load at once."""

    def __init__(self, queue: QueueSettings) -> None:
        self._queue = queue
        self.turns = Turnstile(queue.parallel_loads)
        self._interval_s = 0.0
        self._ended_s: float | None = None
        """When the last load was over, if others have been under way ever since."""

    def require_place(self, tenant: Tenant, under_way: Sequence[Tenant]) -> None:
        """Raises Overloaded or OverQuota if too many load already; `under_way` has the tenant of each."""
        if len(under_way) >= self._queue.max_waiting_loads:
            raise Overloaded(f"{len(under_way)} models are being loaded already: call again later, or add instances")
        if under_way.count(tenant) >= self._queue.max_waiting_loads_per_tenant:
            raise OverQuota(f"{under_way.count(tenant)} models of tenant {tenant} are being loaded already, its limit: call again later")

    def start(self, under_way: int, load_s: float, deadline_s: float | None) -> Start:
        """Whether to begin a load for a request with this deadline, by the event loop's clock."""
        left_s = None if deadline_s is None else deadline_s - asyncio.get_running_loop().time()
        return loads.start(LoadLine(self._queue.parallel_loads, under_way, self._interval_s), load_s, left_s)

    def over(self, under_way: int) -> None:
        """A load has ended, well or not; so many others go on."""
        now_s = asyncio.get_running_loop().time()
        if self._ended_s is not None:
            self._interval_s = loads.smoothed(self._interval_s, now_s - self._ended_s)
        self._ended_s = now_s if under_way else None


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
