"""Step 2 of a request's path, on one screen: admit → route → send → settle. Every door comes here."""

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from operator import attrgetter
from uuid import uuid4

from flatshare.client.instance import InstanceClient
from flatshare.core.call import FIRST_VERSION, ModelSource
from flatshare.core.errors import (
    BadInput,
    BadPackage,
    InstanceGone,
    InstanceHung,
    ModelFailed,
    ModelNotReady,
    NeverFits,
    Overloaded,
    TooSlow,
)
from flatshare.core.ids import EndpointName, InstanceId, ModelKey, TargetModel
from flatshare.core.settings import GatewaySettings
from flatshare.core.state import VariantRoute
from flatshare.gateway import streaming
from flatshare.gateway.call import Answer, ModelCall
from flatshare.gateway.routes import RouteTable, Upstream, model_address
from flatshare.gateway.shadow import Answered, Shadows
from flatshare.gateway.statistics import ModelStatistics
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import UNKNOWN, GatewayMetrics
from flatshare.wire import container
from flatshare.wire.http import REQUEST_ID, Reply

log = get_logger("gateway")
OF_THE_MODEL = (BadInput, BadPackage, NeverFits, ModelFailed, TooSlow)
"""Errors of an instance that the model, its artifact or its input caused; the others are the platform's."""
_NOBODY_YET: frozenset[InstanceId] = frozenset()
_ASK_S = 2.0  # an instance that is only busy answers from its event loop in milliseconds
_DEADLINE = container.DEADLINE_MS.encode()
_VERSION, _NO_VERSIONS = container.MODEL_VERSION.encode(), FIRST_VERSION.encode()
_PHASES = {container.QUEUE_MS: "queue", container.COLD_START_MS: "load", container.MODEL_MS: "model"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an inference ended, for the books."""

    endpoint: EndpointName
    status: int
    """In the door's own terms."""
    took_s: float
    call: ModelCall | None = None
    """None if the request did not come so far as to name a model."""
    answer: Answer | None = None
    """None if no instance answered."""


class Admission:
    """How many requests are under way, and the most that may be. No generator's context: every request passes it."""

    __slots__ = ("_most", "in_flight")

    def __init__(self, most: int) -> None:
        self._most = most
        self.in_flight = 0

    def __enter__(self) -> None:
        if self.in_flight >= self._most:
            raise Overloaded(f"{self.in_flight} requests are under way, the limit: call again later")
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


class Invoker:
    """The journey of one call through the gateway."""

    def __init__(self, settings: GatewaySettings, routes: RouteTable, metrics: GatewayMetrics, shadows: Shadows) -> None:
        self._settings = settings
        self._routes = routes
        self._metrics = metrics
        self._shadows = shadows
        self._admission = Admission(settings.max_in_flight)
        self._waiting = 0
        self.statistics = ModelStatistics()
        metrics.in_flight.set_function(lambda: self._admission.in_flight)

    def admitted(self) -> "Admission":
        """For the time that a request is under way. Entering raises Overloaded."""
        return self._admission

    def ask(self, call: ModelCall) -> Awaitable[Answer]:
        """What a model says. A target model with a label, such as `acme/intent@live`, is looked up first."""
        return self._send(call) if "@" not in call.target else self._ask_labelled(call)

    async def _ask_labelled(self, call: ModelCall) -> Answer:
        async def ask_artifact(target: TargetModel) -> Answer:
            return await self._send(call if target == call.target else replace(call, target=target))

        return await self._routes.versions.answered(call.endpoint, call.target, ask_artifact, attrgetter("reply"))

    async def _send(self, asked: ModelCall) -> Answer:
        """To the model's instance; if that dies, to another, by the routes as they are then: an inference may be run twice."""
        call = asked
        point, tried = random.random(), _NOBODY_YET  # noqa: S311  # a split of traffic, not a secret
        asked_s = time.monotonic()
        while True:
            variant = self._routes.variant(self._routes.endpoint(call.endpoint), call.variant, point)
            source, key = model_address(variant.prefix, call.target)
            upstream = self._routes.upstream(variant, key, tried)
            if upstream is None:
                await self._until_another(variant, asked_s + self._patience_s(asked))
                call = _later(asked, time.monotonic() - asked_s)
                continue
            with upstream as client:
                try:
                    return Answer(self._hold(await self._exchange(client, call, key, source), upstream), variant)
                except InstanceHung:
                    raise
                except InstanceGone as error:
                    log.warning("instance_gone", instance=upstream.id, reason=str(error))
                    if tried:
                        raise  # two instances died of it, or under it: a third is not put at risk
                    tried, call = frozenset({upstream.id}), _later(asked, time.monotonic() - asked_s)

    async def _until_another(self, variant: VariantRoute, give_up_s: float) -> None:
        """An instance that died is back in a second or two; its callers wait for it rather than call again. Raises InstanceGone."""
        has_room = self._waiting < self._settings.max_in_flight // 2  # a dead endpoint does not shut the door before the others
        self._waiting += 1
        try:
            if not has_room or self._routes.routes.stands_by or not await self._routes.changed(give_up_s - time.monotonic()):
                raise InstanceGone(f"no instance of variant {variant.name} answers at the moment: call again in a few seconds")
        finally:
            self._waiting -= 1

    def _patience_s(self, call: ModelCall) -> float:
        """How long the call may wait for an instance that is started again: no longer than its caller for the answer. Raises BadInput."""
        said = next((value for name, value in call.headers if name == _DEADLINE), None)
        most_s = self._settings.restart_wait_s
        return most_s if said is None else min(most_s, container.parse_deadline_ms(said.decode("latin-1")) / 1e3)

    def _hold(self, reply: Reply, upstream: Upstream) -> Reply:
        """An answer that comes in parts is under way until its last."""
        if reply.parts is not None:
            self._admission.in_flight += 1
            upstream.in_flight += 1
            reply.parts = streaming.HeldParts(reply.parts, partial(self._let_go, upstream))
        return reply

    def _let_go(self, upstream: Upstream) -> None:
        self._admission.in_flight -= 1
        upstream.in_flight -= 1

    async def unload(self, endpoint: EndpointName, target: TargetModel) -> None:
        """Take a model out of the memory of every instance that holds it, once its riders are done."""
        for variant in self._routes.endpoint(endpoint).variants:
            _, key = model_address(variant.prefix, target)
            for upstream in self._routes.serving(variant):
                with upstream as client:
                    reply = await client.request("DELETE", f"/models/{key}", timeout_s=self._settings.hold_s)
                    if reply.status not in {200, 404}:
                        raise container.error_in(reply)

    def settle(self, outcome: Outcome) -> None:
        """Count one inference, once its answer is on its way."""
        call, answer = outcome.call, outcome.answer
        known = outcome.endpoint if outcome.endpoint in self._routes.endpoints else UNKNOWN
        told = dict(answer.reply.headers) if answer else {}
        phases = {_PHASES[name]: float(value) / 1e3 for name, value in told.items() if name in _PHASES}
        self._metrics.answered(known, outcome.status, outcome.took_s, phases)
        if call is None or answer is None:
            return
        is_success = answer.reply.status < 300
        if is_success:
            cause = told.get(container.COLD_CAUSE, b"").decode()
            self._routes.cold_starts.note(call.endpoint, call.target, phases.get("load", 0.0), cause)
            version, ran_s = told.get(_VERSION, _NO_VERSIONS).decode(), phases.get("model", 0.0)
            self.statistics.succeeded(call.endpoint, call.target, version, took_s=outcome.took_s, ran_s=ran_s)
        elif answer.reply.status != 404:  # callers invent names
            asked = dict(call.headers).get(_VERSION, b"").decode()
            self.statistics.failed(call.endpoint, call.target, asked, took_s=outcome.took_s)
        if answer.reply.parts is not None:
            return  # a shadow's stream would have to be compared word by word
        if is_success or isinstance(container.error_in(answer.reply), OF_THE_MODEL):
            self._shadows.copy(Answered(call, answer.reply, outcome.took_s))

    async def _exchange(self, client: InstanceClient, call: ModelCall, key: ModelKey, source: ModelSource) -> Reply:
        headers = [*call.headers, *container.source_headers(source), (REQUEST_ID, call.request_id.encode())]
        path, hold_s = f"/models/{key}{call.action}", self._settings.hold_s
        try:
            streamed = streaming.is_streamed if call.takes_parts else None
            return await client.request(call.method, path, headers=headers, body=call.body, timeout_s=hold_s, streamed=streamed)
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
        return container.error_reply(500, TooSlow.__name__, f"the model did not answer within {self._settings.hold_s:.0f} s")


def _later(call: ModelCall, passed_s: float) -> ModelCall:
    """The same, of whose deadline so much has passed. Raises BadInput."""
    headers = tuple((name, container.less_time(value, passed_s) if name == _DEADLINE else value) for name, value in call.headers)
    return replace(call, headers=headers)


def stopwatch() -> Callable[[], float]:
    """Call the result for the seconds since."""
    started_s = time.monotonic()
    return lambda: time.monotonic() - started_s


def request_ids() -> Iterator[str]:
    """UUIDs that begin at random and count in their last group: unique, and cheaper than asking the kernel for each."""
    prefix = str(uuid4())[:24]
    for number in count(1):
        yield f"{prefix}{number:012x}"
