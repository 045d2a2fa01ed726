"""Step 2 of a request's path, on one screen: admit → route → send → settle. Every door asks here."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from uuid import uuid4

from flatshare.client.instance import InstanceClient
from flatshare.core.call import ModelSource
from flatshare.core.errors import InstanceGone, InstanceHung, ModelNotReady, Overloaded, TooSlow
from flatshare.core.ids import EndpointName, InstanceId, ModelKey, TargetModel, VariantName, model_key
from flatshare.core.settings import GatewaySettings
from flatshare.core.state import VariantRoute
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.statistics import ModelStatistics
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.wire import container, sagemaker
from flatshare.wire.http import Reply

log = get_logger("gateway")
_ASK_S = 2.0  # an instance that is only busy answers from its event loop in milliseconds


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants of a model, whatever the door that it came through."""

    endpoint: EndpointName
    target: TargetModel | None
    request_id: str
    variant: VariantName | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What the container may see."""
    body: bytes = b""
    method: str = "POST"
    action: str = "/invoke"
    """Which call of the container contract, below the model's path."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What an instance said, an error of its own included, and the variant that it serves."""

    reply: Reply
    variant: VariantRoute

    def milliseconds(self, header: bytes) -> float | None:
        return next((float(value) for key, value in self.reply.headers if key == header), None)


class Invoker:
    """The journey of one call through the gateway."""

    def __init__(self, settings: GatewaySettings, routes: RouteTable, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._routes = routes
        self._metrics = metrics
        self._in_flight = 0
        self.statistics = ModelStatistics()
        self.request_ids = request_ids()
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def ask(self, ask: Ask) -> Answered:
        """What the model's instance answers. Raises what goes wrong on the way to it."""
        self._in_flight += 1
        try:
            if self._in_flight > self._settings.max_in_flight:
                raise Overloaded(f"{self._in_flight} requests are under way, the limit: call again later")
            self._routes.endpoint(ask.endpoint)
            if ask.target is None:
                raise sagemaker.missing_target()
            return await self._send(ask, ask.target, random.random())  # noqa: S311  # a split of traffic, not a secret
        finally:
            self._in_flight -= 1

    async def unload(self, endpoint: EndpointName, target: TargetModel) -> None:
        """Take a model out of the memory of every instance that holds it, once its riders are done."""
        for variant in self._routes.endpoint(endpoint).variants:
            _, key = address(variant.prefix, target)
            for upstream in self._routes.serving(variant):
                with upstream as client:
                    reply = await client.request("DELETE", f"/models/{key}", timeout_s=self._settings.hold_s)
                    if reply.status not in {200, 404}:
                        raise container.error_in(reply)

    def settle(self, ask: Ask, status: int, took_s: float, answered: Answered | None) -> None:
        """Count one inference, once its answer is on its way. `answered` is None if no instance answered."""
        known = ask.endpoint if ask.endpoint in self._routes.endpoints else "unknown"
        cold_ms = answered.milliseconds(container.COLD_START_MS) if answered else None
        self._metrics.answered(known, status, took_s, None if cold_ms is None else cold_ms / 1e3)
        if answered is not None and ask.target is not None and answered.reply.status != 404:  # callers invent names
            ran_ms = answered.milliseconds(container.MODEL_MS)
            self.statistics.note(ask.endpoint, ask.target, is_success=status < 300, took_s=took_s, ran_s=(ran_ms or 0.0) / 1e3)

    async def _send(self, ask: Ask, target: TargetModel, point: float) -> Answered:
        """To the model's instance; if that dies, to another, by the routes as they are then: an inference may be run twice."""
        tried = frozenset[InstanceId]()
        while True:
            variant = self._routes.variant(self._routes.endpoint(ask.endpoint), ask.variant, point)
            source, key = address(variant.prefix, target)
            upstream = self._routes.upstream(variant, key, tried)
            if upstream is None:
                raise InstanceGone(f"no instance of variant {variant.name} answers at the moment: call again in a few seconds")
            with upstream as client:
                try:
                    return Answered(await self._exchange(client, ask, key, source), variant)
                except InstanceHung:
                    raise
                except InstanceGone as error:
                    log.warning("instance_gone", instance=upstream.id, reason=str(error))
                    if tried:
                        raise  # two instances died of it, or under it: a third is not put at risk
                    tried = frozenset({upstream.id})

    async def _exchange(self, client: InstanceClient, ask: Ask, key: ModelKey, source: ModelSource) -> Reply:
        headers = [*ask.headers, *container.source_headers(source)]
        hold_s = self._settings.hold_s
        try:
            return await client.request(ask.method, f"/models/{key}{ask.action}", headers=headers, body=ask.body, timeout_s=hold_s)
        except TimeoutError:
            return await self._too_late(client, key, hold_s)

    async def _too_late(self, client: InstanceClient, key: ModelKey, hold_s: float) -> Reply:
        """The hold time is over: was the model still loading, or is it slow?"""
        try:
            found = await client.request("GET", f"/models/{key}", timeout_s=_ASK_S)
        except TimeoutError:
            raise InstanceHung(f"the instance hangs: no answer within {hold_s:.0f} s, nor to a simple question") from None
        if found.status == 404:
            raise ModelNotReady(f"the model was still loading after {hold_s:.0f} s; the load goes on: call again")
        return container.error_reply(500, TooSlow.__name__, f"the model did not answer within {hold_s:.0f} s")


class Stopwatch:
    """Time since it was made."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started_s


@lru_cache(maxsize=16_384)
def address(prefix: str, target: TargetModel) -> tuple[ModelSource, ModelKey]:
    """Where the model lies, and its key. Hashing each time would cost more than the rest of the gateway's routing."""
    uri = sagemaker.artifact_uri(prefix, target)
    return ModelSource(uri, prefix), model_key(uri)


def request_ids() -> Iterator[str]:
    """UUIDs that begin at random and count in their last group: unique, and cheaper than asking the kernel for each."""
    prefix = str(uuid4())[:24]
    for number in count(1):
        yield f"{prefix}{number:012x}"
