"""Steps 4 to 7 of a request's path, on one screen: parse → lease → run → render."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flatshare.core.call import ModelSource
from flatshare.core.errors import Overloaded
from flatshare.core.ids import ModelKey
from flatshare.instance.cache import Lease, ModelCache
from flatshare.instance.workbench import Workbench
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
        with self._counted(request):
            asked = infer.parse(request.header("content-type"), request.body)
            async with self._cache.lease(key, source) as lease:
                signature, stop = lease.model.signature, threading.Event()
                signature.require(asked.call)
                run = await self._workbench.run(partial(lease.model.run, asked.call, stop), stop)
                answer = infer.render(asked, signature.task, run.result, request.header(container.TARGET_MODEL, key), lease.digest)
                return Reply(200, answer.body, answer.content_type, _timings(lease, run.seconds, run.waited_s))

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
