"""Steps 6 and 7 for decoupled models: each answer goes to the caller as it comes, as a v2 answer of its own."""

import asyncio
from dataclasses import dataclass, replace

from flatshare.core.call import InferCall, InferResult, Scalar
from flatshare.core.errors import Abandoned, FlatshareError, Overloaded
from flatshare.core.ids import NOBODY, Tenant
from flatshare.instance import remote
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.ride import Ride
from flatshare.wire import v2
from flatshare.wire.generation import StreamForm
from flatshare.wire.http import Reply
from flatshare.wire.v2 import V2Request

_MOST_WAITING = 1024
"""Answers that a caller has not read yet."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How the answers look, and who gives them."""

    form: StreamForm
    request: V2Request
    name: str
    digest: str

    def part(self, result: InferResult) -> bytes:
        said: dict[str, Scalar] = {"model_digest": self.digest, v2.FINAL: result.is_final}
        return self.form.whole(v2.as_line(v2.render(self.request, result, self.name, said)))

    def end(self) -> bytes:
        """An answer without tensors, whichever were asked for."""
        every = replace(self.request, call=replace(self.request.call, wanted=()))
        return replace(self, request=every).part(InferResult(()))


async def in_parts(model: RemoteModel, call: InferCall, voice: Voice, deadline_s: float | None, ride: Ride) -> Reply:
    """The reply begins with the first answer; what goes wrong before is raised. `ride` ends when the last has gone."""
    parts = TensorParts(model, call, voice, NOBODY if ride.lease is None else ride.lease.tenant, deadline_s)
    try:
        await parts.begin()
    except BaseException:
        await parts.aclose()
        raise
    ride.has_parts = True
    parts.hold(ride)
    return Reply(200, content_type=voice.form.content_type, parts=parts)


class TensorParts:
    """Answers as a body in parts. Closing it tells the model that nobody listens, and ends the lease."""

    def __init__(self, model: RemoteModel, call: InferCall, voice: Voice, tenant: Tenant, deadline_s: float | None) -> None:
        self._voice = voice
        self._ride: Ride | None = None
        self._heard: asyncio.Queue[InferResult | BaseException | None] = asyncio.Queue()  # bounded by `_hear`
        self._first: InferResult | BaseException | None = None
        self._has_begun = self._has_ended = False
        self._was_final = False
        self._error: FlatshareError | None = None
        self._asking = asyncio.get_running_loop().create_task(self._ask(model, call, tenant, deadline_s))
        self._asking.add_done_callback(self._end)

    async def begin(self) -> None:
        """Until the first answer, or the end without one. Raises what the model raised before it answered."""
        self._first = await self._heard.get()
        if isinstance(self._first, BaseException):
            raise self._first

    def hold(self, ride: Ride) -> None:
        self._ride = ride

    def __aiter__(self) -> "TensorParts":
        return self

    async def __anext__(self) -> bytes:
        if self._has_ended:
            raise StopAsyncIteration
        heard = await self._heard.get() if self._has_begun else self._first
        self._has_begun = True
        if isinstance(heard, InferResult):
            self._was_final = heard.is_final
            return self._voice.part(heard)
        self._has_ended = True
        if heard is None:
            return self._last()
        if isinstance(heard, Abandoned):
            raise heard
        sentence = str(heard) if isinstance(heard, FlatshareError) else f"the model failed: {type(heard).__name__}: {heard}"
        return self._voice.form.error(sentence, type(heard).__name__)

    async def aclose(self) -> None:
        try:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        finally:
            if self._ride is not None:
                await self._ride.end()

    def _last(self) -> bytes:
        """Whoever asked for it hears of the end also if the model had nothing more to say."""
        if self._was_final or not self._voice.request.has_empty_final:
            raise StopAsyncIteration
        return self._voice.end()

    async def _ask(self, model: RemoteModel, call: InferCall, tenant: Tenant, deadline_s: float | None) -> None:
        async with remote.within(deadline_s):
            await model.stream(call, self._hear, tenant)

    def _hear(self, result: InferResult) -> None:
        if self._heard.qsize() >= _MOST_WAITING:
            self._error = Overloaded(f"{_MOST_WAITING} answers wait for their caller, who reads slower than the model answers")
            self._asking.cancel()
        else:
            self._heard.put_nowait(result)

    def _end(self, asking: "asyncio.Task[None]") -> None:
        error = self._error or (None if asking.cancelled() else asking.exception())
        self._heard.put_nowait(error)
