"""Steps 4 to 7 of a request's path, on one screen: parse → lease → run → render."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from flatshare.core.call import InferCall, InferResult, ModelSource
from flatshare.core.ids import ModelKey
from flatshare.core.settings import SharingSettings
from flatshare.core.signature import Signature, Task
from flatshare.instance import remote, streaming, writing
from flatshare.instance.backends.base import LoadedModel, RemoteModel
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.cache import PLAIN_SHARING, ModelCache
from flatshare.instance.holding import Lease
from flatshare.instance.job import Run, Ticket
from flatshare.instance.ride import Bodies, Ride
from flatshare.instance.workbench import Workbench
from flatshare.wire import container, infer
from flatshare.wire.http import Outlet, Reply, Request

Guard = Callable[[ModelKey], AbstractAsyncContextManager[None] | None]
"""Around all that is done with a model; None for one that may be run without."""


class Server:
    """The journey of one request through an instance."""

    def __init__(
        self, cache: ModelCache, workbench: Workbench, sharing: SharingSettings = PLAIN_SHARING, guard: Guard = lambda _: None
    ) -> None:
        self._cache = cache
        self._workbench = workbench
        self._sharing = sharing
        self._guard = guard
        self._bodies = Bodies()

    async def invoke(self, key: ModelKey, source: ModelSource | None, request: Request) -> Reply:
        ride = Ride(self._cache, self._bodies, len(request.body))
        try:
            deadline_s = self._deadline_s(request)
            asked = infer.parse(request.header("content-type"), request.body).for_version(request.header(container.MODEL_VERSION))
            if (guard := self._guard(key)) is not None:
                await ride.pass_guard(guard)
            lease = ride.lease = await self._cache.borrow(key, source, deadline_s)
            signature = _signature(lease.model, asked.call.version)
            signature.require(asked.call)
            name = request.header(container.TARGET_MODEL, key)
            if isinstance(lease.model, GeneratingModel):
                return await self._write(_Writing(lease, lease.model, asked, name, deadline_s), request, ride)
            if isinstance(lease.model, RemoteModel):
                return await self._ask_remote(_Asking(lease, lease.model, asked, name, deadline_s), request, ride)
            answer = _Answer(lease, signature.task, asked, name, request.outlet)
            await self._workbench.infer(lease.model, key, asked.call, lease.tenant, deadline_s, answer.deliver)
            return answer.reply
        finally:
            if not ride.has_parts:
                await ride.end()

    async def _write(self, asks: "_Writing", request: Request, ride: Ride) -> Reply:
        """A model that writes runs on a thread of its own, many texts at once; only tokenising takes a worker."""
        lease, model = asks.lease, asks.model
        ticket = Ticket(lease.tenant, deadline_s=asks.deadline_s)
        prepared = await self._workbench.run(partial(model.prepare, asks.asked.call), None, ticket)
        form = writing.stream_form(request, asks.asked)
        if form is not None:
            reply = await writing.in_parts(model, prepared.result, form, writing.Label(asks.name, lease.digest), ride)
            reply.headers = _timings(lease, prepared.seconds, prepared.waited_s)
            return reply
        written = await writing.whole(model, prepared.result, asks.asked)
        answer = infer.render(asks.asked, model.signature.task, written.result, asks.name, lease.digest)
        return Reply(200, answer.body, answer.content_type, _timings(lease, written.seconds, prepared.waited_s))

    async def _ask_remote(self, asks: "_Asking", request: Request, ride: Ride) -> Reply:
        """A model of another process has no use for an engine thread. One that is decoupled answers as often as it likes, in a stream."""
        lease, asked, call = asks.lease, asks.asked, remote.with_attributes(asks.asked.call, request)
        form = writing.stream_form(request, asked) if asks.model.signature_of(call.version).is_decoupled else None
        if form is not None and asked.request is not None:
            voice = streaming.Voice(form, asked.request, asks.name, lease.digest)
            reply = await streaming.in_parts(asks.model, call, voice, asks.deadline_s, ride)
            reply.headers = [_version(asks.model, call)]
            return reply
        run = await remote.run(asks.model, call, lease.tenant, asks.deadline_s)
        result, attributes = remote.split_attributes(run.result)
        answer = infer.render(asked, lease.model.signature.task, result, asks.name, lease.digest)
        return Reply(
            200, answer.body, answer.content_type, [_version(asks.model, call), *_timings(lease, run.seconds, run.waited_s), *attributes]
        )

    async def describe(self, key: ModelKey, source: ModelSource | None, version: str) -> Reply:
        """What the model takes and gives, loading it if it is absent: only a loaded model knows."""
        async with self._cache.lease(key, source) as lease:
            return container.render_metadata(_signature(lease.model, version), lease.digest)

    def _deadline_s(self, request: Request) -> float | None:
        """By time.monotonic. Raises BadInput."""
        text = request.header(container.DEADLINE_MS)
        left_ms = container.parse_deadline_ms(text) if text else self._sharing.queue.deadline_ms
        return None if left_ms is None else time.monotonic() + left_ms / 1e3


class _Answer:
    """An answer is rendered, and if there is a way also sent, by the engine thread that has the result (docs/decisions/0088)."""

    __slots__ = ("_asked", "_lease", "_name", "_outlet", "_task", "reply")

    def __init__(self, lease: Lease, task: Task, asked: infer.WireCall, name: str, outlet: Outlet | None) -> None:
        self._lease = lease
        self._task = task
        self._asked = asked
        self._name = name
        self._outlet = outlet
        self.reply = Reply(500)

    def deliver(self, run: Run[InferResult]) -> None:
        """Raises BadInput if the model has no answer in the form that was asked for."""
        rendered = infer.render(self._asked, self._task, run.result, self._name, self._lease.digest)
        self.reply = Reply(200, rendered.body, rendered.content_type, _timings(self._lease, run.seconds, run.waited_s))
        if self._outlet is not None:
            self._outlet.send(self.reply)


@dataclass(frozen=True, slots=True)
class _Writing:
    """A call of a model that writes."""

    lease: Lease
    model: GeneratingModel
    asked: infer.WireCall
    name: str
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class _Asking:
    """A call of a model in another process."""

    lease: Lease
    model: RemoteModel
    asked: infer.WireCall
    name: str
    deadline_s: float | None


def _signature(model: LoadedModel | RemoteModel, version: str) -> Signature:
    """Raises UnknownTarget for a version that is not served."""
    if isinstance(model, RemoteModel):
        return model.signature_of(version)
    signature = model.signature
    signature.require_version(version)
    return signature


def _version(model: RemoteModel, call: InferCall) -> tuple[bytes, bytes]:
    return container.MODEL_VERSION.encode(), (call.version or model.signature.versions[-1]).encode()


def _timings(lease: Lease, ran_s: float, waited_s: float) -> list[tuple[bytes, bytes]]:
    headers = [
        (container.MODEL_DIGEST, lease.digest.encode()),
        (container.MODEL_MS, b"%.3f" % (1e3 * ran_s)),
        (container.QUEUE_MS, b"%.3f" % (1e3 * waited_s)),
    ]
    if lease.cold_start_s is not None:
        headers += [(container.COLD_START_MS, b"%.3f" % (1e3 * lease.cold_start_s)), (container.COLD_CAUSE, lease.cause.encode())]
    return headers
