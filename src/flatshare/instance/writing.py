"""Steps 6 and 7 for models that write: hand the call to the stepper, hear what comes of it, answer whole or in parts."""

import asyncio
import time
from dataclasses import dataclass

from flatshare.core.call import InferResult
from flatshare.core.errors import Abandoned, FlatshareError
from flatshare.core.generation import Generated, Piece
from flatshare.instance.backends.generate.job import Job
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.backends.generate.writing import Task
from flatshare.instance.ride import Ride
from flatshare.wire import container, generation
from flatshare.wire.generation import StreamForm
from flatshare.wire.http import Reply, Request
from flatshare.wire.infer import WireCall

_Heard = Piece | Generated | Exception


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote, and how long that took."""

    result: InferResult
    seconds: float


def stream_form(request: Request, asked: WireCall) -> StreamForm | None:
    """How the caller wants the parts; None if it wants the whole.

    Server-sent events if it accepts them or its body says "stream", lines of JSON for InvokeEndpointWithResponseStream.
    """
    if "text/event-stream" in request.header("accept").lower():
        return generation.EVENTS
    if container.STREAM in request.headers:
        return generation.LINES
    is_plain = asked.request is None  # v2 over HTTP has no streams
    return generation.EVENTS if is_plain and generation.wants_stream(asked.call.parameters) else None


async def whole(model: GeneratingModel, tasks: tuple[Task, ...], asked: WireCall) -> Written:
    """Raises what the model raises. A caller who leaves frees its rows, and its lease only then."""
    began_s = time.perf_counter()
    ear = Ear(model)
    ear.begin(tasks)
    try:
        while not isinstance(heard := await ear.next(), Generated):
            if isinstance(heard, Exception):
                raise heard
    finally:
        await ear.close()
    return Written(generation.result_of(heard, asked.call, tasks[0].decoding), time.perf_counter() - began_s)


@dataclass(frozen=True, slots=True)
class Label:
    """Who answers, as the last part says."""

    name: str
    digest: str


async def in_parts(model: GeneratingModel, tasks: tuple[Task, ...], form: StreamForm, label: Label, ride: Ride) -> Reply:
    """The reply begins with the first text; what goes wrong before is raised. `ride` ends when the last part has gone."""
    ear = Ear(model)
    ear.begin(tasks)
    try:
        first = await ear.next()
        if isinstance(first, Exception):
            raise first
    except BaseException:
        await ear.close()
        raise
    ride.has_parts = True
    return Reply(200, content_type=form.content_type, parts=TextParts(ear, first, form, label, ride))


class Ear:
    """Hears on the event loop what the stepper says on its thread. Made and used on one loop, for one job."""

    def __init__(self, model: GeneratingModel) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[_Heard] = asyncio.Queue()  # bounded by the tokens of the job
        self._over = asyncio.Event()
        self._job: Job | None = None

    def begin(self, tasks: tuple[Task, ...]) -> None:
        """Raises Overloaded."""
        self._job = self._model.start(tasks, self)

    async def next(self) -> _Heard:
        return await self._heard.get()

    async def close(self) -> None:
        """If it is not over yet, it is given up; returns when the rows are free, also if the waiting is cancelled meanwhile."""
        if self._job is None or self._over.is_set():
            return
        self._model.cancel(self._job)
        waiting = self._loop.create_task(self._over.wait())
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await waiting
            raise

    # What the stepper calls, on its thread.

    def piece(self, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(self._heard.put_nowait, piece)

    def generated(self, generated: Generated) -> None:
        self._loop.call_soon_threadsafe(self._end, generated)

    def failed(self, error: Exception) -> None:
        self._loop.call_soon_threadsafe(self._end, error)

    def _end(self, heard: _Heard) -> None:
        self._over.set()
        self._heard.put_nowait(heard)


class TextParts:
    """A text as a body in parts. Closing it stops the writing, and ends the lease."""

    def __init__(self, ear: Ear, first: _Heard, form: StreamForm, label: Label, ride: Ride) -> None:
        self._ear = ear
        self._first: _Heard | None = first
        self._form = form
        self._label = label
        self._ride = ride
        self._has_ended = False

    def __aiter__(self) -> "TextParts":
        return self

    async def __anext__(self) -> bytes:
        if self._has_ended:
            raise StopAsyncIteration
        heard, self._first = (await self._ear.next() if self._first is None else self._first), None
        if isinstance(heard, Piece):
            return self._form.piece(heard)
        self._has_ended = True
        if isinstance(heard, Generated):
            return self._form.end(heard, self._label.name, self._label.digest)
        if isinstance(heard, Abandoned):
            raise heard
        sentence = str(heard) if isinstance(heard, FlatshareError) else f"the model failed: {type(heard).__name__}: {heard}"
        return self._form.error(sentence, type(heard).__name__)

    async def aclose(self) -> None:
        try:
            await self._ear.close()
        finally:
            await self._ride.end()
