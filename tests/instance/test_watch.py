"""What nobody asks about: pressure, memory that stays away, models that idle."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from flatshare.core.errors import OutOfMemory
from flatshare.core.settings import CacheSettings, QueueSettings, SharingSettings
from flatshare.core.sizes import MIB
from flatshare.instance import books as books_module
from flatshare.instance.watch import Watch
from flatshare.instance.workbench import Workbench
from flatshare.policy.pressure import Signs
from tests.instance.conftest import Flat, key_of, running_flat, source

BIG = 50 * MIB


@dataclass
class Watched:
    """A cache of 1 GiB with models of 50 MiB, and a kernel that says what a test wants."""

    flat: Flat
    watch: Watch
    signs_now: Signs = field(default_factory=lambda: Signs(8192 * MIB, 6000 * MIB))
    recycled: int = 0
    workbench: Workbench = field(default=None)  # type: ignore[assignment]  # set with the watch

    def signs(self, now_s: float) -> Signs:
        return self.signs_now

    async def look(self, seconds: float = 1.0) -> None:
        self.flat.clock.advance(seconds)
        await self.watch.look()


@asynccontextmanager
async def watched(**memory: object) -> AsyncIterator[Watched]:
    settings = CacheSettings(order="lru", **memory)  # type: ignore[arg-type]  # what a test sets
    async with running_flat(1024 * MIB, patience_s=0.05, sharing=SharingSettings(settings)) as flat:
        for index in range(10):
            flat.finder.put(f"m{index}", BIG)
        found = Watched(flat, None)  # type: ignore[arg-type]  # set below: each needs the other

        def recycle(drain_s: float | None) -> None:
            found.recycled += 1

        sharing = SharingSettings(settings, QueueSettings(max_run_s=0.0))
        workbench = Workbench(1, sharing)
        found.watch = Watch(flat.cache, workbench, found, sharing, flat.clock, flat.journal, recycle)
        found.workbench = workbench
        yield found
        workbench.close()


class TestPressure:
    async def test_idle_models_make_way_for_a_hog_and_come_back_when_it_has_gone(self) -> None:
        async with watched() as it:
            await it.flat.use(*(f"m{i}" for i in range(10)))
            await it.look()
            assert len(it.flat.resident) == 10
            it.signs_now = Signs(8192 * MIB, 650 * MIB)
            await it.look()
            assert 3 <= len(it.flat.resident) <= 5, "650 MiB are left beside us, 410 of them to others"
            assert it.flat.entries("pressure")
            assert all("pressure from outside" in entry.reason for entry in it.flat.entries("evict"))
            it.signs_now = Signs(8192 * MIB, 6000 * MIB)
            await it.look(30)
            await it.flat.use(*(f"m{i}" for i in range(10)))
            assert len(it.flat.resident) == 10

    async def test_what_is_in_use_stays(self) -> None:
        async with watched() as it, AsyncExitStack() as stack:
            for index in range(4):
                await stack.enter_async_context(it.flat.cache.lease(key_of(f"m{index}"), source(f"m{index}")))
            it.signs_now = Signs(8192 * MIB, 0)
            await it.look()
            assert len(it.flat.resident) == 4

    async def test_in_the_last_of_it_nothing_is_loaded_and_that_is_no_fault_of_the_model(self) -> None:
        async with watched() as it:
            await it.flat.use("m0")
            it.signs_now = Signs(8192 * MIB, 100 * MIB)
            await it.look()
            with pytest.raises(OutOfMemory, match="machine runs short of memory") as raised:
                await it.flat.use("m1")
            assert raised.value.can_retry
            it.signs_now = Signs(8192 * MIB, 6000 * MIB)
            await it.look()
            await it.flat.use("m1")


class TestIdle:
    async def test_models_leave_when_their_time_is_over_pinned_ones_and_those_in_use_excepted(self) -> None:
        async with watched(ttl_s=60.0, pinned=("m0",)) as it, AsyncExitStack() as stack:
            await it.flat.use("m0", "m2")
            await stack.enter_async_context(it.flat.cache.lease(key_of("m1"), source("m1")))
            await it.look(58)
            assert it.flat.resident == {"m0", "m1", "m2"}
            await it.look(10)
            assert it.flat.resident == {"m0", "m1"}
            assert "idle for more than 60 s" in it.flat.entries("expire")[0].reason


class TestMemoryThatStaysAway:
    async def test_the_heap_is_shrunk_and_then_the_instance_replaced_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(books_module, "anonymous_bytes", lambda: 400 * MIB)
        async with watched() as it:
            await it.look()
            assert (it.flat.backend.shrinks, it.recycled) == (1, 0)
            for _ in range(3):
                await it.look()
            assert it.recycled == 1
            assert len(it.flat.entries("recycle")) == 1

    async def test_if_shrinking_helped_all_is_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = [400 * MIB]
        monkeypatch.setattr(books_module, "anonymous_bytes", lambda: sum(kept))
        async with watched() as it:
            monkeypatch.setattr(it.flat.backend, "shrink", kept.clear)
            for _ in range(4):
                await it.look()
            assert it.recycled == 0


async def test_a_run_that_hangs_replaces_the_instance() -> None:
    async with watched() as it:
        gate = threading.Event()
        hanging = asyncio.create_task(it.workbench.run(gate.wait))
        await it.flat.until(lambda: it.workbench.longest_run_s() > 0)
        await it.look()
        assert it.recycled == 1
        assert "hangs" in it.flat.entries("recycle")[0].reason
        gate.set()
        await hanging


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_thread_that_has_ended_replaces_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: int) -> None:
        raise RuntimeError("a bug")

    async with watched() as it:
        await it.look()
        assert it.recycled == 0
        monkeypatch.setattr(it.workbench, "_until_called", end)
        await it.workbench.run(lambda: 1)
        await it.flat.until(lambda: not it.workbench.is_whole)
        await it.look()
        assert it.recycled == 1
        assert "engine thread" in it.flat.entries("recycle")[0].reason
