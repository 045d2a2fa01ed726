"""Step 5g: an instance that comes back has its hot models first: what the last one of its name served is remembered, and loaded ahead."""

import asyncio
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

import orjson

from flatshare.core.call import ModelSource
from flatshare.core.ids import ModelKey
from flatshare.instance.cache import ModelCache
from flatshare.instance.demand import UNREADABLE, records
from flatshare.telemetry.log import get_logger

log = get_logger("hot")
_EVERY_S = 5.0
_PREFETCH_EVERY_S = 15.0
_MOST = 1_000
_FULL = 0.8
"""Of the budget: the rest is for who really asks."""


class HotSet:
    """Reads, follows and warms."""

    def __init__(self, cache: ModelCache, folder: Path, name: str) -> None:
        self._cache = cache
        self._path = folder / f"{name}.hot.json"

    def restore(self) -> int:
        """Remember what the last instance knew; how many models that are."""
        try:
            found = records(self._path, now_s=time.time())
        except FileNotFoundError:
            return 0
        except UNREADABLE:
            log.warning("hot_set_unreadable", path=str(self._path))
            return 0
        for record in found:
            self._cache.demand.restore(record.key, record.known, record.age_s)
        return len(found)

    async def warm(self, but: Container[ModelKey] = ()) -> None:
        """Load the most valuable ones, one after the other, as long as there is room; none of `but`, which are suspects."""
        demand = self._cache.demand
        values = {key: demand.worth(key) for key in demand.known()}
        for key in sorted(values, key=values.__getitem__, reverse=True):
            if self._is_full:
                return
            if key in but:
                continue
            await self._load(key, demand.known()[key].source)

    async def warm_ahead(self, but: Container[ModelKey], within_s: float) -> None:
        """Restore, and warm before callers come, for so long at most: callers without another instance must not wait for a thousand."""
        self.restore()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.warm(but)

    async def prefetch(self) -> None:
        """Until cancelled: load again what had to go for others, the most valuable first, when there is room. Nobody is pushed out."""
        while True:
            await asyncio.sleep(_PREFETCH_EVERY_S)
            await self.bring_back()

    async def bring_back(self) -> None:
        """One look."""
        demand = self._cache.demand
        for key in sorted(demand.evicted_models(), key=lambda key: -demand.worth(key)):
            if self._is_full:
                return
            await self._load(key, demand.known()[key].source)

    async def follow(self) -> None:
        """Until cancelled: write down what is in use, so that it is known after a death; and once more at the end."""
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                await asyncio.to_thread(self._write, self._cache.demand.export(_MOST))
        finally:
            self._write(self._cache.demand.export(_MOST))

    async def _load(self, key: ModelKey, source: ModelSource) -> None:
        try:
            await self._cache.warm(key, source)
        except Exception as error:  # noqa: BLE001  # the worker's main: a model that cannot be loaded must not end the instance
            log.info("not_warmed", uri=source.uri, reason=str(error))

    @property
    def _is_full(self) -> bool:
        balance = self._cache.balance()
        return balance.anonymous + balance.mapped > _FULL * (balance.memory_limit - balance.pressure)

    def _write(self, records: list[dict[str, object]]) -> None:
        if not records:
            return
        try:
            fresh = self._path.with_suffix(".tmp")
            fresh.write_bytes(orjson.dumps(records))
            fresh.replace(self._path)
        except OSError as error:  # a full disk is no reason to fail
            log.warning("hot_set_not_written", reason=str(error))
