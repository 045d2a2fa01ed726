"""Step 5e: once a second, look at what nobody asks about: pressure from outside, memory that did not come back, models that idle too long.

Decided by policy/pressure.py and policy/recycle.py; here is the looking and the acting.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from flatshare.core.clock import Clock
from flatshare.core.settings import SharingSettings
from flatshare.core.sizes import MIB, format_size
from flatshare.instance.cache import ModelCache
from flatshare.instance.workbench import Workbench
from flatshare.policy import pressure, recycle
from flatshare.policy.pressure import Signs
from flatshare.policy.recycle import Remedy
from flatshare.telemetry.journal import Entry, Journal
from flatshare.telemetry.log import get_logger

log = get_logger("watch")
EVERY_S = 1.0
_SHRINK_EVERY_S = 10.0
_HUNG_DRAIN_S = 5.0  # what hangs will not be done by then either, and a new instance waits to be started


class SignSource(Protocol):
    def signs(self, now_s: float) -> Signs:
        """What the kernel says now."""


class Watch:
    """`recycle` is called, with the time to drain if not the usual, when the instance has to be replaced: its supervisor starts another."""

    def __init__(
        self,
        cache: ModelCache,
        workbench: Workbench,
        kernel: SignSource,
        sharing: SharingSettings,
        clock: Clock,
        journal: Journal,
        recycle: Callable[[float | None], None],
    ) -> None:
        self._cache = cache
        self._workbench = workbench
        self._kernel = kernel
        self._settings = sharing.memory
        self._max_run_s = sharing.queue.max_run_s
        self._clock = clock
        self._journal = journal
        self._recycle = recycle
        self._looked_s = clock.monotonic_s()
        self._shrunk_s: float | None = None
        self._is_recycling = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # the loop's tick: what it failed at, the next one tries again
                log.exception("watch_failed")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        await self._heed_pressure()
        await self._end_idle()
        await self._see_that_memory_came_back()
        if not self._workbench.is_whole:
            self._replace_instance("an engine thread has ended, and nobody works on what it was handed", _HUNG_DRAIN_S)
        ran_s = self._workbench.longest_run_s()
        if ran_s > self._max_run_s:
            self._replace_instance(f"a run hangs for {ran_s:.0f} s, and a thread cannot be stopped", _HUNG_DRAIN_S)

    async def _heed_pressure(self) -> None:
        now_s, balance = self._clock.monotonic_s(), self._cache.balance()
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        signs = self._kernel.signs(now_s)
        before = balance.memory_limit - balance.pressure
        found = pressure.allowance(
            signs, budget=balance.memory_limit, private=balance.measured_anonymous, before=before, elapsed_s=elapsed_s
        )
        changed = found.bytes != before
        if abs(found.bytes - before) > MIB and (found.bytes < before or before == 0):
            self._note("pressure", f"{found.reason}: {format_size(found.bytes)} of {format_size(balance.memory_limit)} may be used")
        if changed or found.is_tight != self._cache.room.is_tight:
            await self._cache.allow(found.bytes, found.reason, is_tight=found.is_tight)

    async def _end_idle(self) -> None:
        ttl_s = self._settings.ttl_s
        if ttl_s is None:
            return
        now_s = self._clock.monotonic_s()
        stale = [
            h.key for h in self._cache.held() if h.leases == 0 and now_s - h.used_s > ttl_s and not self._cache.room.is_pinned(h.source)
        ]
        for key in filter(self._cache.is_idle, stale):
            await self._cache.remove(key, "expire", "idle", f"idle for more than {ttl_s:g} s")

    async def _see_that_memory_came_back(self) -> None:
        balance, now_s = self._cache.balance(), self._clock.monotonic_s()
        found = recycle.remedy(
            booked=balance.anonymous,
            measured=balance.measured_anonymous,
            budget=balance.memory_limit,
            recycle_share=self._settings.recycle_share,
            is_quiet=self._cache.is_quiet(),
            has_shrunk=self._shrunk_s is not None,
        )
        if found is Remedy.SHRINK or (self._shrunk_s is not None and now_s - self._shrunk_s > _SHRINK_EVERY_S):
            self._shrunk_s = now_s
            await self._cache.shrink()
        elif found is Remedy.RECYCLE:
            excess = format_size(balance.measured_anonymous - balance.anonymous)
            self._replace_instance(f"{excess} of private memory that nobody booked did not come back")
        elif found is Remedy.NONE and balance.measured_anonymous - balance.anonymous <= recycle.TOLERANCE:
            self._shrunk_s = None

    def _replace_instance(self, reason: str, drain_s: float | None = None) -> None:
        if not self._is_recycling:
            self._is_recycling = True
            self._note("recycle", f"{reason}: the instance is replaced")
            self._recycle(drain_s)

    def _note(self, kind: str, reason: str) -> None:
        self._journal.note(Entry(self._clock.wall_s(), kind, "-", reason))
        log.warning(f"memory_{kind}", reason=reason)
