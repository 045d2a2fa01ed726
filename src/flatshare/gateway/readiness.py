"""Whether callers should be sent here: not while the server starts, nor once it has been told to stop."""

import asyncio
from collections.abc import Iterable

from flatshare.core.errors import InstanceGone
from flatshare.core.ids import EndpointName
from flatshare.core.state import Routes
from flatshare.telemetry.log import get_logger

log = get_logger("gateway")


class Readiness:
    """starting → ready → draining. Alive is whoever answers at all; this is the other question.

    Ready means that the control plane answers and that every endpoint of an earlier run has an instance again. An endpoint that loses
    its instances later changes nothing: the others go on, and its own callers hear of it. A server that stands by for another one is
    not ready; when it takes over, it brings the endpoints back first.
    """

    def __init__(self) -> None:
        self._is_decided = asyncio.Event()
        self.is_draining = asyncio.Event()
        self._awaited: set[EndpointName] | None = None
        self._stands_by = False
        self._give_up_s = 0.0

    def start(self, endpoints: Iterable[EndpointName], routes: Routes, *, give_up_s: float) -> None:
        """The control plane answers, and brings these endpoints back; one that does not come back is waited for so long."""
        self._give_up_s = give_up_s
        self._stands_by = routes.stands_by
        self._await(endpoints)
        self._is_decided.set()
        self.look(routes)

    def look(self, routes: Routes) -> None:
        """The routes have changed."""
        if self._stands_by and not routes.stands_by:
            self._await(routes.endpoints)
        self._stands_by = routes.stands_by
        for name in tuple(self._awaited or ()):
            endpoint = routes.endpoints.get(name)
            if endpoint is None or any(variant.instances for variant in endpoint.variants):
                assert self._awaited is not None
                self._awaited.discard(name)

    def drain(self) -> None:
        self.is_draining.set()
        self._is_decided.set()

    @property
    def has_started(self) -> bool:
        """Calls are answered from now on."""
        return self._awaited is not None

    async def until_started(self) -> None:
        """Calls are answered from then on; endpoints may still be on their way back. Raises InstanceGone if it never came to that."""
        if self._awaited is None:
            await self._is_decided.wait()
            if self._awaited is None:
                raise InstanceGone(self.reason)

    @property
    def is_ready(self) -> bool:
        return not self.is_draining.is_set() and not self._stands_by and self._awaited is not None and not self._awaited

    @property
    def reason(self) -> str:
        """Why not, in words."""
        if self.is_draining.is_set():
            return "the server stops"
        if self._stands_by:
            return "the server stands by: another one over the same database serves, and this one takes over when that ends"
        return f"endpoints are on their way back: {', '.join(sorted(self._awaited))}" if self._awaited else "the server starts"

    def require(self) -> None:
        """Raises InstanceGone if callers should not be sent here now."""
        if not self.is_ready:
            raise InstanceGone(self.reason)

    def _await(self, endpoints: Iterable[EndpointName]) -> None:
        self._awaited = set(endpoints)
        if self._awaited:
            asyncio.get_running_loop().call_later(self._give_up_s, self._give_up)

    def _give_up(self) -> None:
        if self._awaited:
            log.warning("endpoints_did_not_come_back", endpoints=sorted(self._awaited))
            self._awaited.clear()
