"""Prepacked copies come to hot models, into memory that is to spare, and leave before any model does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from flatshare.core.errors import Quarantined, UnsupportedModel
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.settings import CacheSettings, SharingSettings, TenantSettings
from flatshare.instance.backends.fake import COPY_BYTES, FakeModel
from flatshare.instance.copies import PREPACKING
from flatshare.instance.explain import Explainer
from flatshare.instance.promote import Promoter
from flatshare.policy.promote import Trial
from tests.instance.conftest import BASE, LRU, OWN, SESSION, Flat, key_of, running_flat, source

MODEL = 1_000  # mapped weights of one
ROOM = BASE + SESSION + 2 * (OWN + MODEL)
"""Two models and nothing else."""
HOT = 1_000


def spare(*, models: int = 2, copies: int) -> int:
    """A budget for so many models and copies, and the sixteenth that stays free."""
    return (BASE + SESSION + models * (OWN + MODEL) + copies * COPY_BYTES) * 16 // 15 + 16


def free_for_all(_: ModelKey) -> None:
    """As the quarantine's for what nobody suspects."""


@dataclass
class Stage:
    """A cache, and who promotes in it. A short run takes 10 ms, as far as is known."""

    flat: Flat
    promoter: Promoter
    guarded: list[ModelKey] = field(default_factory=list)

    def model(self, name: str) -> FakeModel:
        [found] = [resting.model for resting in self.flat.cache.packable() if resting.key == key_of(name)]
        assert isinstance(found, FakeModel)
        return found

    async def ask(self, name: str, times: int) -> None:
        await self.flat.use(name)
        self.model(name).short_runs += times

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.flat.clock.advance(2)
            await self.promoter.look()

    @property
    def copied(self) -> set[str]:
        return {copy.source.uri.rsplit("/", 1)[1] for _, copy in self.flat.cache.copies}


@asynccontextmanager
async def stage(memory_bytes: int, sharing: SharingSettings = LRU, guard: object = free_for_all) -> AsyncIterator[Stage]:
    async with running_flat(memory_bytes, anonymous_share=1.0, sharing=sharing, patience_s=0.2) as flat:
        for name in ("a", "b", "c"):
            flat.finder.put(name, MODEL)
        yield Stage(flat, Promoter(flat.cache, flat.clock, lambda _key, _units: 0.01, guard))  # type: ignore[arg-type]  # a test's own


async def test_a_model_that_is_asked_often_gets_a_copy_and_one_asked_now_and_then_does_not() -> None:
    async with stage(spare(copies=2)) as scene:
        await scene.ask("a", HOT)
        await scene.ask("b", 5)
        await scene.look(3)
        assert scene.copied == {"a"}
        assert scene.model("a").has_copy
        balance = scene.flat.cache.balance()
        assert (balance.models, balance.copies) == (2, 1)
        assert balance.anonymous == BASE + SESSION + 2 * OWN + COPY_BYTES
        assert [info.copy_bytes for info in scene.flat.cache.snapshot() if info.uri == source("a").uri] == [COPY_BYTES]
        [entry] = scene.flat.entries("prepack")
        assert "1000 short runs" in entry.reason
        assert "1.40 times as fast" in entry.reason


async def test_one_copy_is_made_at_a_time_the_hottest_model_first() -> None:
    async with stage(spare(models=3, copies=3)) as scene:
        for name, times in (("a", HOT), ("b", 3 * HOT), ("c", 2 * HOT)):
            await scene.ask(name, times)
        for expected in ({"b"}, {"b", "c"}, {"a", "b", "c"}):
            await scene.look()
            assert scene.copied == expected


async def test_where_nothing_is_to_spare_there_are_no_copies() -> None:
    async with stage(ROOM + COPY_BYTES) as scene:  # it would fit, but leave no sixteenth for the next load
        await scene.ask("a", HOT)
        await scene.ask("b", HOT)
        await scene.look(3)
        assert scene.copied == set()
        assert scene.flat.resident == {"a", "b"}


async def one_copy_and_a_neighbour(scene: Stage) -> None:
    """Of a hot model, beside a model that is not, and nothing to spare."""
    await scene.ask("a", HOT)
    await scene.ask("b", 1)
    await scene.look()
    assert scene.copied == {"a"}


@pytest.mark.parametrize("settings", [{"order": "lru"}, {"order": "value"}, {"mode": "all-resident"}], ids=str)
async def test_a_copy_leaves_for_a_model_whatever_the_order_and_no_other_is_made_for_a_minute(settings: dict[str, Any]) -> None:
    async with stage(spare(copies=1), SharingSettings(CacheSettings(**settings))) as scene:
        await one_copy_and_a_neighbour(scene)
        await scene.flat.use("c")
        assert scene.flat.resident == {"a", "b", "c"}
        assert scene.copied == set()
        assert not scene.model("a").has_copy
        assert scene.flat.entries("evict") == []
        assert len(scene.flat.entries("drop_copy")) == 1
        await scene.flat.cache.unload(key_of("c"))
        await scene.look(20)
        assert scene.copied == set()
        await scene.look(15)
        assert scene.copied == {"a"}


async def test_a_pin_and_a_floor_protect_the_model_and_not_its_copy() -> None:
    settings = CacheSettings(pinned=("a",), tenant_pattern="(.)")
    async with stage(spare(copies=1), SharingSettings(settings, tenants={Tenant("a"): TenantSettings(floor_bytes=1 << 30)})) as scene:
        await one_copy_and_a_neighbour(scene)
        await scene.flat.use("c")
        assert scene.flat.resident == {"a", "b", "c"}
        assert scene.copied == set()


async def test_it_is_explained_as_the_first_to_go_and_is_no_model_before_its_model() -> None:
    async with stage(spare(copies=1)) as scene:
        await one_copy_and_a_neighbour(scene)
        explainer = Explainer(scene.flat.cache, scene.flat.finder, scene.flat.journal)
        said = await explainer.explain(key_of("a"), source("a"))
        assert (said.copy_bytes, said.rank) == (COPY_BYTES, 0)
        first = said.next_to_go[0]
        assert (first.uri, first.is_copy, first.frees_bytes) == (source("a").uri, True, COPY_BYTES)


async def test_a_copy_goes_with_its_model() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)
        await scene.look()
        await scene.flat.cache.unload(key_of("a"))
        assert scene.flat.cache.balance().anonymous == BASE
        assert scene.copied == set()


async def test_a_copy_that_nobody_asks_for_any_more_is_dropped_and_its_model_stays() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", 100)
        await scene.look()
        assert scene.copied == {"a"}
        scene.flat.clock.advance(1_200)
        await scene.look()
        assert scene.copied == set()
        assert scene.flat.resident == {"a"}
        assert "hardly anybody" in scene.flat.entries("drop_copy")[0].reason


async def test_a_much_hotter_model_takes_the_place_of_a_copy_and_a_slightly_hotter_one_does_not() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)
        await scene.look()
        await scene.ask("b", 3 * HOT // 2)
        await scene.look(3)
        assert scene.copied == {"a"}
        await scene.ask("b", 2 * HOT)
        await scene.look(2)
        assert scene.copied == {"b"}


async def test_where_copies_are_no_faster_none_is_kept_and_after_three_none_is_tried() -> None:
    async with stage(spare(models=3, copies=3)) as scene:
        scene.flat.backend.trial = Trial(0.005, 0.005, 0.15)
        await scene.ask("a", HOT)
        await scene.ask("b", HOT)
        await scene.look(6)
        assert scene.copied == set()
        assert len(scene.flat.entries("give_up")) == 3
        assert "no faster on this machine" in scene.promoter.refusals()["g"]
        assert scene.flat.cache.balance().copies == 0


async def test_one_trial_on_busy_cores_rules_nobody_out() -> None:
    async with stage(spare(copies=1)) as scene:
        scene.flat.backend.trial = Trial(0.009, 0.009, 0.3)
        await scene.ask("a", HOT)
        await scene.look()
        assert scene.copied == set()
        scene.flat.backend.trial = Trial(0.007, 0.005, 0.15)
        await scene.look()
        assert scene.copied == {"a"}
        assert scene.promoter.refusals() == {}


async def test_a_copy_that_failed_while_it_served_goes_and_no_other_comes() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)
        await scene.look()
        scene.model("a").copy_works = False
        await scene.look(3)
        assert scene.copied == set()
        assert scene.flat.cache.balance().copies == 0
        assert scene.promoter.refusals() == {"g": "a copy failed while it served"}


async def test_an_architecture_that_the_engine_does_not_take_costs_one_try_and_others_have_theirs() -> None:
    async with stage(spare(models=3, copies=3) + SESSION) as scene:
        scene.flat.finder.put("other", MODEL, graph="h")
        scene.flat.backend.copy_failure = UnsupportedModel("no such operator")
        await scene.ask("a", 2 * HOT)
        await scene.look()
        scene.flat.backend.copy_failure = None
        await scene.ask("b", 2 * HOT)
        await scene.ask("other", HOT)
        await scene.look(3)
        assert scene.copied == {"other"}
        assert scene.promoter.refusals() == {"g": "no such operator"}


async def test_making_copies_that_kills_instances_is_given_up() -> None:
    asked: list[ModelKey] = []

    @asynccontextmanager
    async def shut_out(key: ModelKey) -> AsyncIterator[None]:
        asked.append(key)
        if asked:
            raise Quarantined("it was running alone when its instance died, 3 times")
        yield

    async with stage(spare(copies=1), guard=shut_out) as scene:
        await scene.ask("a", HOT)
        await scene.look(2)
        assert asked == [PREPACKING]
        assert scene.copied == set()


async def test_while_a_copy_is_made_its_model_cannot_leave_and_serves() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)
        await scene.ask("b", 1)
        scene.flat.backend.gate.clear()
        looking = asyncio.create_task(scene.look())
        await scene.flat.until(lambda: scene.flat.cache.copies.is_changing)
        assert scene.flat.cache.balance().copies == 1, "reserved before a byte is taken"
        assert not scene.flat.cache.is_idle(key_of("a"))
        unloading = asyncio.create_task(scene.flat.cache.unload(key_of("a")))
        await scene.flat.use("a")
        assert not unloading.done()
        scene.flat.backend.gate.set()
        await looking
        await unloading
        assert scene.flat.resident == {"b"}
        assert scene.flat.cache.balance().copies == 0


async def test_a_model_that_was_loaded_again_begins_to_count_anew() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", 60)
        await scene.look()
        await scene.flat.cache.unload(key_of("a"))
        await scene.ask("a", 5)
        await scene.look(3)
        assert scene.copied == set()


async def test_a_model_that_leaves_takes_its_copy_along_while_others_are_looked_at() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)
        await scene.look()
        async with scene.flat.cache.lease(key_of("a"), source("a")) as lease:
            scene.flat.cache.replace(frozenset({lease.digest}), "another version came")  # it leaves once this lease ends
            await scene.look()
            assert scene.copied == {"a"}
        await scene.flat.until(lambda: scene.flat.cache.balance().copies == 0)
        assert scene.flat.resident == set()


async def test_a_model_that_left_before_its_turn_gets_no_copy() -> None:
    async with stage(spare(copies=1)) as scene:
        await scene.ask("a", HOT)

        @asynccontextmanager
        async def meanwhile(_: ModelKey) -> AsyncIterator[None]:
            await scene.flat.cache.unload(key_of("a"))
            yield

        await Promoter(scene.flat.cache, scene.flat.clock, lambda _key, _units: 0.01, meanwhile).look()
        assert scene.flat.cache.balance().copies == 0
        assert scene.flat.entries("prepack") == []


async def test_who_needs_the_room_of_a_copy_that_leaves_waits_for_it_and_evicts_nobody() -> None:
    async with stage(spare(copies=1)) as scene:
        await one_copy_and_a_neighbour(scene)
        [(copy_key, _)] = scene.flat.cache.copies
        leaving = asyncio.create_task(scene.flat.cache.copies.drop(copy_key, "for this test"))
        await asyncio.sleep(0)
        await scene.flat.use("c")
        await leaving
        assert scene.flat.resident == {"a", "b", "c"}
        assert scene.flat.entries("evict") == []
        assert len(scene.flat.entries("drop_copy")) == 1
