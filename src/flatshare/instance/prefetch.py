"""Step 5i: bring models back onto the disk before they are asked for again, where that is worth more than what would leave for them."""

import asyncio

from flatshare.core.call import Urgency
from flatshare.core.errors import DiskFull, FlatshareError
from flatshare.core.ids import ArtifactUri, ModelKey
from flatshare.instance.cache import ModelCache
from flatshare.instance.demand import Known
from flatshare.instance.finding import Finder
from flatshare.store.catalog import Catalog
from flatshare.telemetry.log import get_logger

log = get_logger("prefetch")


class Prefetcher:
    """One model at a time, the most valuable first. Into memory it comes when it is asked for: from the disk that takes milliseconds."""

    def __init__(self, cache: ModelCache, finder: Finder, catalog: Catalog, every_s: float) -> None:
        self._cache = cache
        self._finder = finder
        self._catalog = catalog
        self._every_s = every_s
        self._failed: dict[ModelKey, int] = {}
        """What could not be fetched, and how often it had been asked for then: another request is a reason to try again."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.round()
            except Exception:  # the loop's tick: what it failed at, the next one tries again
                log.exception("prefetch_failed")

    async def round(self) -> None:
        """Fetch what is worth it."""
        for key, known in await self._absent():
            in_use = frozenset(info.digest for info in self._cache.snapshot())
            try:
                await self._finder.find(known.source, in_use, Urgency.AHEAD)
            except DiskFull as error:  # those after it are worth less still
                log.info("not_prefetched", uri=known.source.uri, reason=str(error))
                return
            except FlatshareError as error:
                self._failed[key] = known.visits.requests
                log.info("not_prefetched", uri=known.source.uri, reason=str(error))
            else:
                log.info("model_prefetched", uri=known.source.uri)

    async def _absent(self) -> list[tuple[ModelKey, Known]]:
        """Models that were asked for once and are not on the disk, the most valuable first."""
        demand = self._cache.demand
        known = {key: found for key, found in demand.known().items() if self._failed.get(key) != found.visits.requests}
        uris = {key: ArtifactUri(found.source.uri) for key, found in known.items()}
        here = await asyncio.to_thread(self._catalog.artifacts)
        absent = [key for key, uri in uris.items() if uri not in here and self._cache.state_of(key) == "absent"]
        absent.sort(key=demand.worth, reverse=True)
        return [(key, known[key]) for key in absent]
