"""Step 5h: keep up with artifacts. A resident model's is looked at again beside the requests, and a changed one replaces the model."""

import asyncio
from collections.abc import Awaitable, Callable

from flatshare.core.call import ModelSource
from flatshare.core.clock import Clock
from flatshare.core.errors import FlatshareError
from flatshare.core.ids import ModelKey
from flatshare.instance.finding import Found
from flatshare.instance.holding import Holding
from flatshare.telemetry.log import get_logger

log = get_logger("cache")
_AFTER_FAILURE_S = 300.0


class Recheck:
    """Owned by the cache. One look at a time, so that a slow store delays nothing else.

    An artifact that is gone, broken or out of reach changes nothing: what is in memory goes on serving.
    """

    def __init__(
        self,
        every_s: float,
        clock: Clock,
        find: Callable[[ModelSource], Awaitable[Found]],
        *,
        replace: Callable[[ModelKey, Holding, str], None],
        failed: Callable[[Holding, str, float], None],
    ) -> None:
        """`replace` is told of a model whose artifact has another digest now, `failed` why it could not be seen and when the look began."""
        self._every_s = every_s
        self._clock = clock
        self._find = find
        self._replace = replace
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    def if_due(self, key: ModelKey, entry: Holding, now_s: float) -> None:
        """Begin a look at the artifact of a resident model, if the last one was long ago."""
        if self._task is None and entry.is_loaded and now_s - entry.checked_s > self._every_s:
            self._task = asyncio.get_running_loop().create_task(self._look(key, entry))
            self._task.add_done_callback(self._end)

    async def _look(self, key: ModelKey, entry: Holding) -> None:
        """The new version is imported while the old one serves, and the next request loads it."""
        started_s, before = self._clock.monotonic_s(), entry.ready.result().digest
        try:
            now = (await self._find(entry.source)).stored.manifest.digest
        except FlatshareError as error:
            entry.checked_s = self._clock.monotonic_s() + _AFTER_FAILURE_S
            self._failed(entry, f"goes on with {before[:12]}: {error}", started_s)
            return
        entry.checked_s = self._clock.monotonic_s()
        if now != before:
            self._replace(key, entry, f"the artifact changed: {before[:12]} → {now[:12]}")

    def _end(self, done: asyncio.Task[None]) -> None:
        self._task = None
        if not done.cancelled() and done.exception() is not None:
            log.error("recheck_failed", exc_info=done.exception())
