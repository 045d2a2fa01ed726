"""What one request holds while it is under way, given back in one place: the bytes of its body, its turn among suspects, its lease."""

import sys
from contextlib import AbstractAsyncContextManager

from flatshare.core.errors import Overloaded
from flatshare.instance.cache import ModelCache
from flatshare.instance.holding import Lease

_MAX_BODIES_BYTES = 64 * 2**20


class Bodies:
    """Bodies are private memory that no ledger holds, so their sum is bounded."""

    def __init__(self) -> None:
        self._bytes = 0

    def take(self, size: int) -> None:
        """Raises Overloaded."""
        if self._bytes + size > _MAX_BODIES_BYTES:
            raise Overloaded(f"requests of {self._bytes} bytes are under way on this instance: call again later")
        self._bytes += size

    def give_back(self, size: int) -> None:
        self._bytes -= size


class Ride:
    """Begins with the body, and is to be ended whatever happens. No exit stack: every request has one, and pays for it."""

    __slots__ = ("_bodies", "_cache", "_guard", "_size", "has_parts", "lease")

    def __init__(self, cache: ModelCache, bodies: Bodies, size: int) -> None:
        """Raises Overloaded."""
        bodies.take(size)
        self._cache = cache
        self._bodies = bodies
        self._size = size
        self._guard: AbstractAsyncContextManager[None] | None = None
        self.lease: Lease | None = None
        self.has_parts = False
        """The answer comes in parts: whoever hands them out ends the ride."""

    async def pass_guard(self, guard: AbstractAsyncContextManager[None]) -> None:
        """Wait for the turn of a suspect. Raises Quarantined."""
        await guard.__aenter__()
        self._guard = guard

    async def end(self) -> None:
        """A second time does nothing."""
        lease, guard, size = self.lease, self._guard, self._size
        self.lease, self._guard, self._size = None, None, 0
        self._bodies.give_back(size)
        if lease is not None:
            self._cache.give_back(lease)
        if guard is not None:
            await guard.__aexit__(*sys.exc_info())
