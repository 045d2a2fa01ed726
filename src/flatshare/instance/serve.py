"""Steps 4 to 7 of a request's path, on one screen: parse → lease → run → render."""

import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

from flatshare.core.call import InferCall, InferResult, ModelSource
from flatshare.core.errors import Overloaded
from flatshare.core.ids import ModelKey
from flatshare.instance import writing
from flatshare.instance.backends.base import LoadedModel, RemoteModel
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.cache import Lease, ModelCache
from flatshare.instance.workbench import Run, Workbench
from flatshare.wire import container, infer
from flatshare.wire.http import Reply, Request

_MAX_BODIES_BYTES = 64 * 2**20


class Server:
    """The journey of one request through an instance."""

    def __init__(self, cache: ModelCache, workbench: Workbench) -> None:
        self._cache = cache
        self._workbench = workbench
        self._body_bytes = 0

    async def invoke(self, key: ModelKey, source: ModelSource | None, request: Request) -> Reply:
        async with AsyncExitStack() as held:
            held.enter_context(self._counted(request))
            asked = infer.parse(request.header("content-type"), request.body)
            lease = await held.enter_async_context(self._cache.lease(key, source))
            lease.model.signature.require(asked.call)
            name = request.header(container.TARGET_MODEL, key)
            if isinstance(lease.model, GeneratingModel):
                return await self._write(lease, lease.model, asked, name, request, held)
            run = await self._run(lease.model, asked.call)
            answer = infer.render(asked, lease.model.signature.task, run.result, name, lease.digest)
            return Reply(200, answer.body, answer.content_type, _timings(lease, run.seconds, run.waited_s))

    async def _write(
        self, lease: Lease, model: GeneratingModel, asked: infer.WireCall, name: str, request: Request, held: AsyncExitStack
    ) -> Reply:
        """A model that writes runs on a thread of its own, many texts at once; only tokenising takes a worker."""
        prepared = await self._workbench.run(partial(model.prepare, asked.call))
        form = writing.stream_form(request, asked)
        if form is not None:
            reply = await writing.in_parts(model, prepared.result, form, writing.Label(name, lease.digest), held)
            reply.headers = _timings(lease, prepared.seconds, prepared.waited_s)
            return reply
        written = await writing.whole(model, prepared.result, asked)
        answer = infer.render(asked, model.signature.task, written.result, name, lease.digest)
        return Reply(200, answer.body, answer.content_type, _timings(lease, written.seconds, prepared.waited_s))

    async def describe(self, key: ModelKey, source: ModelSource | None) -> Reply:
        """What the model takes and gives, loading it if it is absent: only a loaded model knows."""
        async with self._cache.lease(key, source) as lease:
            return container.render_metadata(lease.model.signature, lease.digest)

    async def _run(self, model: LoadedModel | RemoteModel, call: InferCall) -> Run[InferResult]:
        """On an engine thread; a model of another process has no use for one."""
        if isinstance(model, RemoteModel):
            started_s = time.perf_counter()
            result = await model.infer(call)
            return Run(result, time.perf_counter() - started_s, waited_s=0.0)
        stop = threading.Event()
        return await self._workbench.run(partial(model.run, call, stop), stop)

    @contextmanager
    def _counted(self, request: Request) -> Iterator[None]:
        """Bodies are private memory that no ledger holds, so their sum is bounded. Raises Overloaded."""
        size = len(request.body)
        if self._body_bytes + size > _MAX_BODIES_BYTES:
            raise Overloaded(f"requests of {self._body_bytes} bytes are under way on this instance: call again later")
        self._body_bytes += size
        try:
            yield
        finally:
            self._body_bytes -= size


def _timings(lease: Lease, ran_s: float, waited_s: float) -> list[tuple[bytes, bytes]]:
    headers = [
        (container.MODEL_DIGEST, lease.digest.encode()),
        (container.MODEL_MS, b"%.3f" % (1e3 * ran_s)),
        (container.QUEUE_MS, b"%.3f" % (1e3 * waited_s)),
    ]
    if lease.cold_start_s is not None:
        headers.append((container.COLD_START_MS, b"%.3f" % (1e3 * lease.cold_start_s)))
    return headers
