"""Step 5h: read the store's packs again in the background, one at a time, and forget those that have rotted: they are imported anew."""

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flatshare.instance.cache import ModelCache
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger

log = get_logger("scrub")
_PAUSE_S = 10.0  # a pack of 90 MB takes 50 ms of a core to hash: half a percent


class Scrubber:
    """One instance of the machine does it, whichever came first."""

    def __init__(self, store: TensorStore, cache: ModelCache, pause_s: float = _PAUSE_S) -> None:
        self._store = store
        self._cache = cache
        self._pause_s = pause_s

    async def run(self) -> None:
        """Until cancelled."""
        with _turn(self._store.folder / "scrub.lock") as is_mine:
            while is_mine:
                await self.round()
                await asyncio.sleep(self._pause_s)

    async def round(self) -> None:
        """Every pack once."""
        for pack in await asyncio.to_thread(self._store.catalog.pack_sizes):
            try:
                if not await asyncio.to_thread(self._store.is_sound, pack):
                    await self._forget(pack)
            except OSError as error:  # a disk that cannot be read now: the next round tries again
                log.warning("scrub_failed", pack=pack, reason=str(error))
            await asyncio.sleep(self._pause_s)

    async def _forget(self, pack: str) -> None:
        models = await asyncio.to_thread(self._store.drop_pack, pack)
        log.error("pack_rotten", pack=pack, models=len(models))
        self._cache.replace(frozenset(models), "its pack on the disk is damaged: it is imported anew")


@contextmanager
def _turn(path: Path) -> Iterator[bool]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
