"""The cache under an operator's rules: value, tenants, pins, all-resident, scratch; loads by fair share and within bounds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

import pytest

from flatshare.core.call import Urgency
from flatshare.core.errors import DiskFull, NeverFits, OutOfMemory, Overloaded, OverQuota, TooLate
from flatshare.core.ids import Tenant
from flatshare.core.settings import CacheSettings, QueueSettings, SharingSettings, TenantSettings
from flatshare.core.sizes import MIB
from flatshare.instance import loading as loading_module
from flatshare.instance.explain import Explainer, Explanation
from tests.instance.conftest import BASE, OWN, SESSION, Flat, key_of, running_flat, source

UNIT = OWN + 1_000


@asynccontextmanager
async def sharing(
    *, models: int = 4, memory: CacheSettings | None = None, queue: QueueSettings | None = None, **tenants: TenantSettings
) -> AsyncIterator[Flat]:
    """Room for a session and so many models, the scratch slot not counted. Models are named `tenant.n`."""
    rules = memory or CacheSettings(order="value", scratch_share=0.0, tenant_pattern=PATTERN)
    settings = SharingSettings(rules, queue or QueueSettings(), {Tenant(name): tenant for name, tenant in tenants.items()})
    async with running_flat(BASE + SESSION + models * UNIT, anonymous_share=1.0, patience_s=0.2, sharing=settings) as flat:
        for tenant in "abc":
            for index in range(10):
                flat.finder.put(f"{tenant}.{index}")
        yield flat


PATTERN = r"([^.]+)\."


class TestValue:
    async def test_a_model_that_is_called_every_minute_outlives_one_that_was_called_once(self) -> None:
        async with sharing(models=2) as flat:
            for _ in range(5):
                flat.clock.advance(60)
                await flat.use("a.0")
            await flat.use("b.0")
            flat.clock.advance(300)
            await flat.use("c.0")
            assert flat.resident == {"a.0", "c.0"}

    async def test_by_plain_lru_it_would_have_gone(self) -> None:
        async with sharing(models=2, memory=CacheSettings(order="lru")) as flat:
            for _ in range(5):
                flat.clock.advance(60)
                await flat.use("a.0")
            await flat.use("b.0")
            flat.clock.advance(300)
            await flat.use("c.0")
            assert flat.resident == {"b.0", "c.0"}

    async def test_an_import_is_no_part_of_what_a_reload_takes(self) -> None:
        async with sharing() as flat:
            flat.finder.look_s = 2.0
            flat.finder.gate.clear()
            imported = asyncio.create_task(flat.use("a.0"))
            for _ in range(5):  # until it looks for the model
                await asyncio.sleep(0)
            assert flat.finder.searches == 1
            flat.clock.advance(100)
            flat.finder.gate.set()
            await imported
            await flat.use("b.0")
            assert 0 < flat.cache.demand.reload_s(key_of("a.0")) == flat.cache.demand.reload_s(key_of("b.0")) < 2

    async def test_reloads_of_what_was_evicted_lately_are_the_thrash_index(self) -> None:
        async with sharing(models=1) as flat:
            for _ in range(3):
                await flat.use("a.0", "b.0")
                flat.clock.advance(1)
            assert (flat.cache.demand.thrash.loads, flat.cache.demand.thrash.reloads) == (6, 4)
            assert not flat.cache.demand.lacks_memory
            for _ in range(130):
                await flat.use("a.0", "b.0")
            assert flat.cache.demand.lacks_memory


class TestTenants:
    async def test_a_flood_of_one_tenant_s_models_leaves_the_floor_of_another(self) -> None:
        async with sharing(a=TenantSettings(floor_bytes=SESSION + 2 * UNIT)) as flat:
            await flat.use("a.0", "a.1")
            flat.clock.advance(3_600)
            await flat.use(*(f"b.{i}" for i in range(10)))
            assert {"a.0", "a.1"} <= flat.resident

    async def test_a_ceiling_holds_although_there_is_room(self) -> None:
        async with sharing(models=10, a=TenantSettings(ceiling_bytes=SESSION + 2 * UNIT)) as flat:
            await flat.use("b.0", "a.0", "a.1", "a.2", "b.1")
            assert flat.resident == {"a.1", "a.2", "b.0", "b.1"}
            assert "ceiling" in flat.entries("evict")[0].reason

    async def test_a_tenant_that_waits_for_its_own_models_holds_up_nobody(self) -> None:
        async with sharing(models=10, a=TenantSettings(ceiling_bytes=SESSION + UNIT)) as flat, AsyncExitStack() as stack:
            await stack.enter_async_context(flat.cache.lease(key_of("a.0"), source("a.0")))
            waiting = asyncio.create_task(flat.use("a.1"))
            await flat.until(lambda: flat.finder.searches == 2)
            await flat.use("b.0", "b.1")
            assert not waiting.done()
            assert {"b.0", "b.1"} <= flat.resident
            await stack.aclose()
            await waiting
            assert {"a.1", "b.0", "b.1"} == flat.resident

    async def test_pinned_models_stay_whoever_comes(self) -> None:
        rules = CacheSettings(pinned=("a.*",), scratch_share=0.0, tenant_pattern=PATTERN)
        async with sharing(memory=rules) as flat:
            await flat.use("a.0", "a.1")
            flat.clock.advance(3_600)
            await flat.use(*(f"b.{i}" for i in range(8)))
            assert {"a.0", "a.1"} <= flat.resident
            await flat.use("a.2", "a.3")
            with pytest.raises(OutOfMemory, match="although nothing is in use"):
                await flat.use("b.0")


class TestAllResident:
    async def test_what_would_push_another_out_is_refused_with_what_to_do(self) -> None:
        async with sharing(memory=CacheSettings(mode="all-resident", order="lru")) as flat:
            await flat.use("a.0", "a.1", "a.2", "a.3")
            with pytest.raises(NeverFits, match="all-resident mode nothing is evicted: raise --memory"):
                await flat.use("b.0")
            assert flat.entries("evict") == []
            await flat.cache.unload(key_of("a.0"))
            await flat.use("b.0")


class TestScratch:
    async def test_a_rare_model_is_served_and_leaves_before_those_that_are_worth_more(self) -> None:
        memory = CacheSettings(order="value", scratch_share=UNIT / (SESSION + 4 * UNIT) + 1e-9, tenant_pattern=PATTERN)
        async with sharing(memory=memory) as flat:
            for _ in range(20):
                await flat.use("a.0", "a.1", "a.2")
            for index in range(5):
                await flat.use("a.0", "a.1", "a.2", f"b.{index}")
                assert {"a.0", "a.1", "a.2", f"b.{index}"} == flat.resident
            assert all("b." in entry.model for entry in flat.entries("evict"))
            assert "scratch" in flat.entries("load")[0].reason


class TestLoads:
    async def test_a_tenant_s_hundred_cold_models_do_not_delay_another_s_one(self) -> None:
        async with sharing(models=40, queue=QueueSettings(parallel_loads=1)) as flat:
            flat.backend.gate.clear()
            flood = [asyncio.create_task(flat.use(f"a.{index}")) for index in range(10)]
            await flat.until(lambda: flat.finder.searches == 10)
            guest = asyncio.create_task(flat.use("b.0"))
            await flat.until(lambda: flat.finder.searches == 11)
            await asyncio.sleep(0.01)
            flat.backend.gate.set()
            await asyncio.gather(guest, *flood)
            order = [entry.model.rsplit("/", 1)[1] for entry in reversed(flat.entries("load"))]
            assert order.index("b.0") <= 2

    async def test_loads_go_by_the_weights_of_their_tenants(self) -> None:
        async with sharing(models=40, queue=QueueSettings(parallel_loads=1), a=TenantSettings(weight=3)) as flat:
            order = await flat.loaded_at_once(["c.0", *(f"b.{index}" for index in range(8)), *(f"a.{index}" for index in range(8))])
            assert [name[0] for name in order[1:9]].count("a") == 6

    async def test_a_tenant_whose_loads_take_long_has_fewer_of_them(self) -> None:
        async with sharing(models=40, queue=QueueSettings(parallel_loads=1)) as flat:
            slow, fast = [f"a.{index}" for index in range(4)], [f"b.{index}" for index in range(8)]
            await flat.use(*slow, *fast)
            for name in (*slow, *fast):
                await flat.slow_load(name, 0.4 if name in slow else 0.03)
            order = await flat.loaded_at_once(["c.0", *slow, *fast])
            assert [name[0] for name in order[1:10]].count("b") == 8

    async def test_loads_that_wait_are_bounded_for_all_and_for_each(self) -> None:
        async with sharing(queue=QueueSettings(max_waiting_loads=4, max_waiting_loads_per_tenant=3)) as flat:
            flat.finder.gate.clear()
            loading = [asyncio.create_task(flat.use(name)) for name in ("a.0", "a.1", "a.2")]
            await flat.until(lambda: flat.finder.searches == 3)
            with pytest.raises(OverQuota, match="tenant a"):
                await flat.use("a.3")
            loading.append(asyncio.create_task(flat.use("b.0")))
            await flat.until(lambda: flat.finder.searches == 4)
            with pytest.raises(Overloaded, match="4 models are being loaded"):
                await flat.use("c.0")
            flat.finder.gate.set()
            await asyncio.gather(*loading)

    async def test_a_request_that_cannot_wait_for_its_load_is_refused_at_once_and_the_model_is_there_for_the_next(self) -> None:
        async with sharing() as flat:
            await flat.use("a.0")
            await flat.slow_load("a.0", 3.0)
            assert flat.resident == set()
            with pytest.raises(TooLate, match=r"not in memory.*loaded for the next"):
                await flat.use_by("a.0", 1.0)
            await flat.until(lambda: flat.resident == {"a.0"})
            await flat.use_by("a.0", 1.0)

    async def test_in_a_crowded_line_a_load_that_would_come_too_late_is_not_begun(self) -> None:
        async with sharing(models=8, queue=QueueSettings(parallel_loads=1)) as flat:
            await flat.use("a.0")
            await flat.slow_load("a.0", 3.0)
            flat.finder.gate.clear()
            others = [asyncio.create_task(flat.use(name)) for name in ("b.0", "b.1")]
            await flat.until(lambda: flat.finder.searches == 3)
            with pytest.raises(TooLate, match=r"other models are loaded first"):
                await flat.use_by("a.0", 1.0)
            flat.finder.gate.set()
            await asyncio.gather(*others)
            assert flat.resident == {"b.0", "b.1"}

    async def test_a_model_on_the_disk_does_not_stand_in_line_behind_what_is_fetched(self) -> None:
        async with sharing(models=8, queue=QueueSettings(parallel_loads=1)) as flat:
            flat.finder.not_here = {"b.0", "b.1"}
            await flat.use("a.0")
            await flat.slow_load("a.0", 0.6)
            flat.finder.gate.clear()
            fetches = [asyncio.create_task(flat.use(name)) for name in ("b.0", "b.1")]
            await flat.until(lambda: flat.finder.searches == 3)
            rider = asyncio.create_task(flat.use_by("a.0", 30.0 / 50))
            await flat.until(lambda: flat.finder.searches == 4)
            flat.finder.gate.set()
            await asyncio.gather(rider, *fetches)

    @pytest.mark.parametrize(("order", "urgency"), [("value", Urgency.AHEAD), ("lru", Urgency.DEMAND)])
    async def test_what_would_be_fetched_too_late_is_fetched_ahead_of_the_next_so_that_by_value_it_is_weighed(
        self, order: Literal["value", "lru"], urgency: Urgency
    ) -> None:
        async with sharing(memory=CacheSettings(order=order)) as flat:
            await fetched_slowly(flat, "a.0")
            with pytest.raises(TooLate, match=r"not in memory.*loaded for the next"):
                await flat.use_by("a.0", 1.0)
            await flat.until(lambda: flat.resident == {"a.0"})
            assert flat.finder.urgencies[-1] is urgency
            await flat.cache.unload(key_of("a.0"))
            flat.finder.not_here.clear()
            await flat.use_by("a.0", 1.0)

    async def test_only_who_can_wait_hastens_what_is_fetched_ahead(self) -> None:
        async with sharing() as flat:
            await fetched_slowly(flat, "a.0")
            flat.finder.gate.clear()
            for _ in range(2):
                with pytest.raises(TooLate, match="loaded for the next"):
                    await flat.use_by("a.0", 1.0)
            assert flat.finder.hastened == []
            patient = asyncio.create_task(flat.use_by("a.0", 60.0))
            await flat.until(lambda: flat.finder.hastened == [source("a.0")])
            flat.finder.gate.set()
            await patient
            assert flat.finder.searches == 2

    async def test_what_is_fetched_ahead_holds_up_nobody_who_waits(self) -> None:
        async with sharing(models=8) as flat:
            for name in ("a.0", "a.1", "b.0"):
                await fetched_slowly(flat, name)
            flat.finder.gate.clear()
            for name in ("a.0", "a.1"):  # there are two places
                with pytest.raises(TooLate, match="loaded for the next"):
                    await flat.use_by(name, 1.0)
            rider = asyncio.create_task(flat.use_by("b.0", 3.5))
            await flat.until(lambda: len(flat.cache.loading()) == 3)
            flat.finder.gate.set()
            await rider

    async def test_what_is_not_worth_a_fetch_is_no_failure_unless_somebody_waits_for_it(self) -> None:
        async with sharing() as flat:
            await fetched_slowly(flat, "a.0")
            flat.finder.failures["a.0"] = DiskFull("not worth it")
            with pytest.raises(TooLate, match="loaded for the next"):
                await flat.use_by("a.0", 1.0)
            await flat.until(lambda: len(flat.entries("give_up")) == 1)
            assert flat.entries("fail") == []
            with pytest.raises(DiskFull):
                await flat.use("a.0")
            assert len(flat.entries("fail")) == 1

    async def test_what_was_not_worth_a_fetch_is_weighed_again_when_it_was_asked_for_twice_as_often(self) -> None:
        async with sharing() as flat:
            await fetched_slowly(flat, "a.0")
            flat.finder.failures["a.0"] = DiskFull("not worth it")
            for given_up in (1, 2):  # for the second request in all, and for the fourth
                with pytest.raises(TooLate, match="loaded for the next"):
                    await flat.use_by("a.0", 1.0)
                await flat.until(lambda given_up=given_up: len(flat.entries("give_up")) == given_up)  # type: ignore[misc]
                with pytest.raises(TooLate, match="other models are loaded first"):
                    await flat.use_by("a.0", 1.0)
            assert flat.cache.loading() == []
            assert flat.finder.searches == 3

    async def test_what_came_back_after_all_may_be_fetched_ahead_once_more(self) -> None:
        async with sharing() as flat:
            await flat.use(*["a.0"] * 4)  # so that the one request below does not make it twice as many
            await fetched_slowly(flat, "a.0")
            flat.finder.failures["a.0"] = DiskFull("not worth it")
            with pytest.raises(TooLate):
                await flat.use_by("a.0", 1.0)
            await flat.until(lambda: len(flat.entries("give_up")) == 1)
            del flat.finder.failures["a.0"]
            await fetched_slowly(flat, "a.0")
            with pytest.raises(TooLate, match="loaded for the next"):
                await flat.use_by("a.0", 1.0)
            await flat.until(lambda: flat.resident == {"a.0"})

    async def test_a_rider_leaves_at_its_deadline_and_the_load_goes_on(self) -> None:
        async with sharing() as flat:
            flat.backend.gate.clear()
            with pytest.raises(TooLate, match="still being loaded when the deadline passed"):
                await flat.use_by("a.0", 0.05)
            flat.backend.gate.set()
            await flat.until(lambda: flat.resident == {"a.0"})

    async def test_a_load_that_nobody_waits_for_any_more_gives_its_turn_to_others(self) -> None:
        async with sharing(queue=QueueSettings(parallel_loads=1)) as flat:
            flat.backend.gate.clear()
            first, forsaken, last = (asyncio.create_task(flat.use(name)) for name in ("a.0", "a.1", "a.2"))
            await flat.until(lambda: flat.finder.searches == 3)
            forsaken.cancel()
            await asyncio.wait([forsaken])
            flat.backend.gate.set()
            await asyncio.gather(first, last)
            await flat.until(lambda: len(flat.entries("give_up")) == 1)
            assert flat.resident == {"a.0", "a.2"}


async def fetched_slowly(flat: Flat, name: str) -> None:
    """It was here, has left the disk, and takes three seconds to come back."""
    await flat.use(name)
    await flat.cache.unload(key_of(name))
    flat.cache.demand.loaded(key_of(name), 0.01, 3.0)
    flat.finder.not_here.add(name)


class TestFootprints:
    async def test_a_load_that_was_alone_corrects_the_next_reservation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        measured = iter([0, 10, 5_000, 8_000])
        monkeypatch.setattr(loading_module, "anonymous_bytes", lambda: next(measured))
        async with sharing() as flat:
            await flat.use("a.0")
            assert flat.finder.footprints == {}, "it brought the session too: what is its own cannot be told"
            await flat.use("a.1")
            assert list(flat.finder.footprints.values()) == [3_000]
            monkeypatch.setattr(loading_module, "anonymous_bytes", lambda: 0)
            await flat.cache.unload(key_of("a.1"))
            await flat.use("a.1")
            assert flat.books.reservation(key_of("a.1")).footprint.own_bytes == 3_000

    async def test_while_others_run_nothing_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        measured = iter(range(0, 10**6, 10_000))
        monkeypatch.setattr(loading_module, "anonymous_bytes", lambda: next(measured))
        async with sharing() as flat, flat.cache.lease(key_of("a.0"), source("a.0")):
            await flat.use("a.1", "a.2")
            assert flat.finder.footprints == {}


class TestExplain:
    async def explain(self, flat: Flat, name: str) -> Explanation:
        return await Explainer(flat.cache, flat.finder, flat.journal).explain(key_of(name), source(name))

    async def test_of_a_resident_it_says_why_it_is_here_and_how_many_go_before_it(self) -> None:
        async with sharing() as flat:
            await flat.use("a.0", "b.0")
            flat.clock.advance(60)
            said = await self.explain(flat, "a.0")
            assert (said.state, said.tenant, said.rank, said.idle_s) == ("resident", "a", 0, 61)
            assert "new of" in said.history[0].reason
            assert [candidate.uri for candidate in said.next_to_go] == [source("a.0").uri, source("b.0").uri]
            assert said.dry_run is None

    async def test_of_one_in_use_it_says_that(self) -> None:
        async with sharing() as flat, flat.cache.lease(key_of("a.0"), source("a.0")):
            flat.clock.advance(60)
            said = await self.explain(flat, "a.0")
            assert (said.rank, said.leases, said.spared_because) == (None, 1, "1 requests use it")

    async def test_of_an_absent_one_it_says_why_it_left_and_what_a_load_would_push_out_without_doing_it(self) -> None:
        async with sharing(models=2) as flat:
            await flat.use("a.0", "b.0")
            flat.clock.advance(60)
            await flat.use("c.0")
            gone = ({"a.0", "b.0"} - flat.resident).pop()
            flat.clock.advance(60)
            before = flat.resident
            said = await self.explain(flat, gone)
            assert said.state == "absent"
            assert said.history[0].kind == "evict"
            assert said.dry_run is not None
            assert said.dry_run.verdict == "evict first"
            assert len(said.dry_run.victims) == 1
            assert flat.resident == before
            await flat.use(gone)
            assert {source(name).uri for name in before - flat.resident} == set(said.dry_run.victims)

    async def test_of_one_that_was_never_imported_it_says_that(self) -> None:
        async with sharing() as flat:
            said = await self.explain(flat, "unheard of")
            assert said.dry_run is not None
            assert (said.dry_run.verdict, said.dry_run.is_estimate, said.dry_run.victims) == ("import first", False, ())

    async def test_of_one_that_was_never_imported_it_estimates_by_its_artifact_who_would_go(self) -> None:
        async with sharing(models=2, memory=CacheSettings(order="lru")) as flat:
            flat.books.set_memory(flat.books.balance().memory_limit + MIB)
            await flat.use("a.0", "b.0")
            flat.finder.unseen_bytes = 1_500
            said = (await self.explain(flat, "unheard of")).dry_run
            assert said is not None
            assert (said.verdict, said.is_estimate, said.needs_bytes) == ("import first", True, MIB + 1_500)
            assert said.victims == (source("a.0").uri,)
            assert "never imported here; if it takes what its artifact does, then evict first: lacked" in said.reason

    async def test_of_one_that_was_refused_it_says_why_and_that_it_would_be_again(self) -> None:
        async with sharing() as flat:
            flat.finder.put("a.huge", 10**6)
            with pytest.raises(NeverFits):
                await flat.use("a.huge")
            said = await self.explain(flat, "a.huge")
            assert (said.state, said.history[0].kind) == ("absent", "refuse")
            assert "an empty instance has room for" in said.history[0].reason
            assert said.dry_run is not None
            assert (said.dry_run.verdict, said.dry_run.reason) == ("never fits", said.history[0].reason)

    async def test_of_one_that_was_refused_for_the_moment_it_says_why_and_that_now_it_would_come_in(self) -> None:
        async with sharing(models=2) as flat:
            async with flat.cache.lease(key_of("a.0"), source("a.0")), flat.cache.lease(key_of("a.1"), source("a.1")):
                with pytest.raises(OutOfMemory):
                    await flat.use("b.0")
                said = await self.explain(flat, "b.0")
                assert said.history[0].kind == "refuse"
                assert "every model that could make room is in use" in said.history[0].reason
                assert said.dry_run is not None
                assert said.dry_run.verdict == "wait"
            now = (await self.explain(flat, "b.0")).dry_run
            assert now is not None
            assert now.verdict == "evict first"
