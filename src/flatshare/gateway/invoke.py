"""Step 2 of a request's path, on one screen: admit → route → send → settle."""

import random
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from uuid import uuid4

from flatshare.client.instance import InstanceClient
from flatshare.core import errors
from flatshare.core.call import ModelSource
from flatshare.core.errors import BadInput, BadPackage, FlatshareError, InstanceGone, InstanceHung, ModelNotReady, NeverFits, Overloaded
from flatshare.core.ids import EndpointName, InstanceId, ModelKey, TargetModel
from flatshare.core.settings import GatewaySettings
from flatshare.core.state import VariantRoute
from flatshare.gateway import streaming
from flatshare.gateway.routes import RouteTable, Upstream, model_address
from flatshare.gateway.shadow import Answered, Shadows
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import UNKNOWN, GatewayMetrics
from flatshare.wire import container, sagemaker
from flatshare.wire.http import REQUEST_ID, Reply, require_body_within
from flatshare.wire.sagemaker import Invocation, LogPlace

log = get_logger("gateway")
_ASK_S = 2.0  # an instance that is only busy answers from its event loop in milliseconds
_PHASES = {container.QUEUE_MS: "queue", container.COLD_START_MS: "load", container.MODEL_MS: "model"}
_KEPT = {container.MODEL_DIGEST, *_PHASES, *sagemaker.RETURNED}
_COPIED = {200, 424}  # a model has answered, be it with an error of its own


class Invoker:
    """The journey of one InvokeEndpoint call through the gateway."""

    def __init__(
        self, settings: GatewaySettings, routes: RouteTable, metrics: GatewayMetrics, shadows: Shadows, *, region: str, account: str
    ) -> None:
        self._settings = settings
        self._routes = routes
        self._metrics = metrics
        self._shadows = shadows
        self._region = region
        self._account = account
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def invoke(self, call: Invocation) -> Reply:
        """Always a reply: what went wrong becomes the contract's error."""
        started_s, request_id = time.monotonic(), call.request.id
        self._in_flight += 1
        try:
            reply = await self._journey(call, request_id)
        except FlatshareError as error:
            reply = sagemaker.error_reply(error, request_id)
        finally:
            self._in_flight -= 1
        if call.is_streamed:
            reply = streaming.framed(reply)
        reply.afterwards = partial(self._settle, call, reply, time.monotonic() - started_s)
        return reply

    async def _journey(self, call: Invocation, request_id: str) -> Reply:
        if self._in_flight > self._settings.max_in_flight:
            raise Overloaded(f"{self._in_flight} requests are under way, the limit: call again later")
        require_body_within(call.request, self._settings.max_body_bytes)
        self._routes.endpoint(call.endpoint)
        sagemaker.refuse_foreign_headers(call)
        if call.target is None:
            raise sagemaker.missing_target(request_id)
        answer, variant = await self._send(call, call.target, random.random())  # noqa: S311  # a split of traffic, not a secret
        return self._as_reply(answer, call.endpoint, variant, request_id)

    async def _send(self, call: Invocation, target: TargetModel, point: float) -> tuple[Reply, VariantRoute]:
        """To the model's instance; if that dies, to another, by the routes as they are then: an inference may be run twice."""
        tried = frozenset[InstanceId]()
        while True:
            variant = self._routes.variant(self._routes.endpoint(call.endpoint), call.variant, point)
            source, key = model_address(variant.prefix, target)
            upstream = self._routes.upstream(variant, key, tried)
            if upstream is None:
                raise InstanceGone(f"no instance of variant {variant.name} answers at the moment: call again in a few seconds")
            with upstream as client:
                try:
                    return self._hold(await self._exchange(client, call, key, source), upstream), variant
                except InstanceHung:
                    raise
                except InstanceGone as error:
                    log.warning("instance_gone", instance=upstream.id, reason=str(error))
                    if tried:
                        raise  # two instances died of it, or under it: a third is not put at risk
                    tried = frozenset({upstream.id})

    def _hold(self, answer: Reply, upstream: Upstream) -> Reply:
        """An answer that comes in parts is under way until its last."""
        if answer.parts is not None:
            self._in_flight += 1
            upstream.in_flight += 1
            answer.parts = streaming.HeldParts(answer.parts, partial(self._let_go, upstream))
        return answer

    def _let_go(self, upstream: Upstream) -> None:
        self._in_flight -= 1
        upstream.in_flight -= 1

    async def _exchange(self, client: InstanceClient, call: Invocation, key: ModelKey, source: ModelSource) -> Reply:
        headers = [*call.forwarded_headers, *container.source_headers(source), (REQUEST_ID, call.request.id.encode())]
        if call.is_streamed:
            headers.append((container.STREAM, b"1"))
        path, hold_s = f"/models/{key}/invoke", self._settings.hold_s
        try:
            return await client.request(
                "POST", path, headers=headers, body=call.request.body, timeout_s=hold_s, streamed=streaming.is_streamed
            )
        except TimeoutError:
            return await self._too_late(client, key)

    async def _too_late(self, client: InstanceClient, key: ModelKey) -> Reply:
        """The hold time is over: was the model still loading, or is it slow?"""
        try:
            found = await client.request("GET", f"/models/{key}", timeout_s=_ASK_S)
        except TimeoutError:
            raise InstanceHung(f"the instance hangs: no answer within {self._settings.hold_s:.0f} s, nor to a simple question") from None
        if found.status == 404:
            raise ModelNotReady(f"the model was still loading after {self._settings.hold_s:.0f} s; the load goes on: call again")
        return container.error_reply(500, "InternalFailure", f"the model did not answer within {self._settings.hold_s:.0f} s")

    def _as_reply(self, answer: Reply, endpoint: EndpointName, variant: VariantRoute, request_id: str) -> Reply:
        if answer.status >= 300:
            return self._as_error(answer, endpoint, request_id)
        kept = [pair for pair in answer.headers if pair[0] in _KEPT]
        answer.headers = [
            *kept,
            (b"x-amzn-invoked-production-variant", variant.name.encode()),
            (REQUEST_ID, request_id.encode()),
        ]
        return answer

    def _as_error(self, answer: Reply, endpoint: EndpointName, request_id: str) -> Reply:
        """The model's own errors become 424 ModelError; the platform's keep their meaning."""
        name = next((value.decode() for key, value in answer.headers if key == container.ERROR), "")
        kind = getattr(errors, name, None)
        message = container.error_sentence(answer)
        if kind is None or issubclass(kind, BadInput | BadPackage | NeverFits):
            place = LogPlace(self._region, self._account, endpoint)
            return sagemaker.model_error_reply(answer.status, message, place, request_id)
        error: FlatshareError = kind(message)
        return sagemaker.error_reply(error, request_id)

    def _settle(self, call: Invocation, reply: Reply, took_s: float) -> None:
        known = call.endpoint if call.endpoint in self._routes.endpoints else UNKNOWN
        phases = {_PHASES[name]: float(value) / 1e3 for name, value in reply.headers if name in _PHASES}
        self._metrics.answered(known, reply.status, took_s, phases)
        if call.target is not None and reply.status in _COPIED and reply.parts is None and not call.is_streamed:
            self._shadows.copy(Answered(call, call.target, reply, took_s))


def request_ids() -> Iterator[str]:
    """UUIDs that begin at random and count in their last group: unique, and cheaper than asking the kernel for each."""
    prefix = str(uuid4())[:24]
    for number in count(1):
        yield f"{prefix}{number:012x}"
