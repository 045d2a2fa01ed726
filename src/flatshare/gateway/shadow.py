"""Beside a request's path: a copy of it to the endpoint's shadow variant, compared with what production answered.

The copy is made when the caller's answer is on its way, so that it delays nobody; it is never answered from. Copies under way are
bounded by number and by bytes: what comes beyond is dropped and counted.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from flatshare.core.errors import FlatshareError
from flatshare.core.ids import EndpointName
from flatshare.core.sizes import MIB
from flatshare.core.state import EndpointRoute, VariantRoute
from flatshare.gateway.call import ModelCall
from flatshare.gateway.routes import RouteTable, model_address
from flatshare.policy import route
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.shadows import AGREED, DIFFERED, FAILED, Comparison, ShadowMetrics, ShadowOf
from flatshare.wire import container, infer
from flatshare.wire.agreement import Agreement, agreement
from flatshare.wire.http import REQUEST_ID, Reply

log = get_logger("gateway")
_MAX_COPIES = 32
_MAX_BYTES = 64 * MIB  # of requests and answers that are kept for comparing


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that a model of production has answered, with its answer or with the model's own error."""

    call: ModelCall
    reply: Reply
    took_s: float

    @property
    def size_bytes(self) -> int:
        return len(self.call.body) + len(self.reply.body)


class Shadows:
    """Owns the copies under way. Made, used and closed on one event loop."""

    def __init__(self, routes: RouteTable, metrics: ShadowMetrics, *, timeout_s: float) -> None:
        self._routes = routes
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._copies: dict[asyncio.Task[None], int] = {}
        """Under way, with the bytes that each holds."""

    def copy(self, answered: Answered) -> None:
        """Send it to the endpoint's shadow, if it has one and the dice say so. Returns at once."""
        endpoint = self._routes.endpoints.get(answered.call.endpoint)
        if endpoint is None or not endpoint.shadows:
            return
        shadow = endpoint.shadows[0]  # the API admits one
        point = random.random()  # noqa: S311  # a sample of traffic, not a secret
        if not route.is_copied(endpoint.variants[0].weight, shadow.weight, point):
            return
        if len(self._copies) >= _MAX_COPIES or sum(self._copies.values()) + answered.size_bytes > _MAX_BYTES:
            self._metrics.dropped(ShadowOf(endpoint.name, shadow.name))
            return
        task = asyncio.create_task(self._follow(endpoint, shadow, answered))
        self._copies[task] = answered.size_bytes
        task.add_done_callback(self._copies.pop)

    def report(self) -> list[dict[str, Any]]:
        """How each shadow compares with production."""
        return self._metrics.report([ShadowOf(e.name, shadow.name) for e in self._routes.endpoints.values() for shadow in e.shadows])

    async def settle(self) -> None:
        """Wait until the copies that are under way now have been compared."""
        await asyncio.gather(*self._copies)

    async def close(self) -> None:
        """Give up what is under way: nobody waits for it."""
        for task in self._copies:
            task.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _follow(self, endpoint: EndpointRoute, shadow: VariantRoute, answered: Answered) -> None:
        started_s = time.monotonic()
        reply = await self._ask(endpoint.name, shadow, answered)
        shadow_s = time.monotonic() - started_s
        self._metrics.compared(ShadowOf(endpoint.name, shadow.name), await _compared(answered, reply, shadow_s))

    async def _ask(self, endpoint: EndpointName, shadow: VariantRoute, answered: Answered) -> Reply | None:
        """The shadow's answer, or None if there is none."""
        source, key = model_address(shadow.prefix, answered.call.target)
        upstream = self._routes.upstream(shadow, key, frozenset())
        if upstream is None:
            return None
        headers = [*answered.call.headers, *container.source_headers(source), (REQUEST_ID, answered.call.request_id.encode())]
        path, body = f"/models/{key}{answered.call.action}", answered.call.body
        with upstream as client:
            try:
                return await client.request("POST", path, headers=headers, body=body, timeout_s=self._timeout_s)
            except (FlatshareError, TimeoutError) as error:
                log.warning("shadow_failed", endpoint=endpoint, variant=shadow.name, reason=str(error) or "no answer in time")
                return None


async def _compared(answered: Answered, shadow: Reply | None, shadow_s: float) -> Comparison:
    times = (answered.took_s, shadow_s)
    has_failed = answered.reply.status >= 300
    if shadow is None or (shadow.status >= 300 and not has_failed):
        return Comparison(FAILED, *times)
    if has_failed:
        return Comparison(AGREED if shadow.status >= 300 else DIFFERED, *times)
    found = await asyncio.to_thread(_agreement, answered.reply, shadow)  # megabytes of numbers, off the callers' loop
    return Comparison(AGREED if found.is_same else DIFFERED, *times, found.cosine)


def _agreement(one: Reply, other: Reply) -> Agreement:
    return agreement(*(infer.as_json(reply.content_type, reply.body) for reply in (one, other)))
