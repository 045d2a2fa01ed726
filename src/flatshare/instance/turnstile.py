"""A few may do something at once, the others wait for their turn, by fair share among tenants. For loads and imports."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from flatshare.core.errors import Abandoned
from flatshare.core.ids import Tenant
from flatshare.policy.fair import FairQueue


def always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose turn it is to be, its tenant's share, and how much of it the turn takes: in any unit that all at one turnstile use."""

    tenant: Tenant
    weight: float = 1.0
    cost: float = 1.0
    is_wanted: Callable[[], bool] = always
    """Whether somebody still waits for it, when its turn has come."""


class Turnstile:
    """Owned by the event loop. Who waits is bounded by whoever lets them come."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def turn(self, claim: Claim) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Raises Abandoned if nobody wants that any more, and others wait."""
        if self._free > 0 and not len(self._queue):
            self._free -= 1
        else:
            await self._wait(claim)
        try:
            if len(self._queue) and not claim.is_wanted():
                raise Abandoned("whoever had asked for it left before its turn, and others wait for theirs")
            yield
        finally:
            self._free += 1
            self._admit()

    async def _wait(self, claim: Claim) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._queue.push(place, claim.tenant, cost=claim.cost, weight=claim.weight)
        try:
            await place
        except asyncio.CancelledError:
            self._queue.drop(entry)
            if place.done() and not place.cancelled():  # the turn came in the same moment: the next one has it
                self._free += 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._free > 0 and (place := self._queue.pop()) is not None:
            if not place.done():
                self._free -= 1
                place.set_result(None)
