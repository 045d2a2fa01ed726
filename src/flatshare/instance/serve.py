"""Steps 4 to 7 of a request's path, on one screen: parse → lease → run → render."""

from functools import partial

from flatshare.core.call import ModelSource
from flatshare.core.ids import ModelKey
from flatshare.instance.cache import Lease, ModelCache
from flatshare.instance.workbench import Workbench
from flatshare.wire import container, texts
from flatshare.wire.http import Reply, Request


class Server:
    """The journey of one request through an instance."""

    def __init__(self, cache: ModelCache, workbench: Workbench) -> None:
        self._cache = cache
        self._workbench = workbench

    async def invoke(self, key: ModelKey, source: ModelSource | None, request: Request) -> Reply:
        call = texts.parse(request.header("content-type"), request.body)
        async with self._cache.lease(key, source) as lease:
            run = await self._workbench.run(partial(lease.model.run, call.call))
            body = texts.render(call, run.result, request.header(container.TARGET_MODEL, key), lease.digest)
            return Reply(200, body, headers=_timings(lease, run.seconds))


def _timings(lease: Lease, ran_s: float) -> list[tuple[bytes, bytes]]:
    headers = [(container.MODEL_DIGEST, lease.digest.encode()), (container.MODEL_MS, b"%.3f" % (1e3 * ran_s))]
    if lease.cold_start_s is not None:
        headers.append((container.COLD_START_MS, b"%.3f" % (1e3 * lease.cold_start_s)))
    return headers
