"""The cache: one load whoever asks, nothing evicted in use, every rider settled, and the books balanced after each step."""

import asyncio
import math
import selectors
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flatshare.core.clock import ManualClock
from flatshare.core.errors import AlreadyLoaded, BadPackage, NeverFits, NotResident, OutOfMemory, StoreUnavailable, UnknownTarget
from flatshare.instance import books as books_module
from flatshare.instance.backends.base import RemoteModel
from tests.calls import text_call
from tests.instance.conftest import BASE, LRU, OWN, SESSION, Flat, key_of, running_flat, source, stored_model


async def ride(flat: Flat, name: str, arrived: list[str] | None = None, leave: asyncio.Event | None = None) -> Any:
    async with flat.cache.lease(key_of(name), source(name)) as lease:
        if arrived is not None:
            arrived.append(name)
        if leave is not None:
            await leave.wait()
        return lease


class TestLoading:
    async def test_fifty_riders_at_once_cause_one_load(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        riders = [asyncio.create_task(ride(flat, "m0")) for _ in range(50)]
        await flat.until(lambda: flat.finder.searches == 1)
        flat.finder.gate.set()
        leases = await asyncio.gather(*riders)
        assert (flat.finder.searches, flat.backend.loads) == (1, 1)
        assert len({id(lease.model) for lease in leases}) == 1

    async def test_a_cold_rider_hears_how_long_it_waited_and_a_warm_one_nothing(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        rider = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 1)
        flat.clock.advance(3)
        late = asyncio.create_task(ride(flat, "m0"))
        await asyncio.sleep(0)
        flat.clock.advance(2)
        flat.finder.gate.set()
        assert (await rider).cold_start_s == 5
        assert (await late).cold_start_s == 2
        assert (await ride(flat, "m0")).cold_start_s is None

    async def test_a_load_of_one_model_does_not_delay_another(self, flat: Flat) -> None:
        await flat.use("m1")
        flat.finder.gate.clear()
        slow = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 2)
        async with asyncio.timeout(1):
            await ride(flat, "m1")
        flat.finder.gate.set()
        await slow

    async def test_a_failed_load_reaches_every_rider_and_leaves_no_trace(self, flat: Flat) -> None:
        flat.backend.failure = BadPackage("it is broken")
        flat.backend.gate.clear()
        riders = [asyncio.create_task(ride(flat, "m0")) for _ in range(10)]
        await flat.until(lambda: flat.books.balance().models == 1)
        flat.backend.gate.set()
        results = await asyncio.gather(*riders, return_exceptions=True)
        assert [type(result) for result in results] == [BadPackage] * 10
        assert flat.books.balance().models == 0
        flat.cache.check()
        flat.backend.failure = None
        await flat.use("m0")
        assert flat.backend.loads == 1

    async def test_an_unknown_model_fails_with_the_finders_reason_and_can_be_asked_for_again(self, flat: Flat) -> None:
        with pytest.raises(UnknownTarget, match="nothing lies"):
            await flat.use("absent")
        flat.finder.put("absent")
        await flat.use("absent")

    async def test_a_crash_of_the_engine_is_noted_too(self, flat: Flat) -> None:
        flat.backend.failure = RuntimeError("onnxruntime says no")
        with pytest.raises(RuntimeError):
            await flat.use("m0")
        assert [entry.reason for entry in flat.entries("fail")] == ["RuntimeError: onnxruntime says no"]

    async def test_a_pack_that_went_between_finding_and_loading_is_worth_another_try(self, flat: Flat) -> None:
        flat.backend.failure = FileNotFoundError(2, "no such file", "p.pack")
        with pytest.raises(StoreUnavailable, match="call again"):
            await flat.use("m0")
        assert flat.books.balance().models == 0

    async def test_a_rider_who_leaves_during_the_load_leaves_alone(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        riders = [asyncio.create_task(ride(flat, "m0")) for _ in range(3)]
        await flat.until(lambda: flat.finder.searches == 1)
        riders[0].cancel()
        await asyncio.sleep(0)
        flat.finder.gate.set()
        results = await asyncio.gather(*riders, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert not isinstance(results[1], BaseException)
        assert not isinstance(results[2], BaseException)
        assert results[1].model is results[2].model
        assert flat.backend.loads == 1

    async def test_a_load_goes_on_when_all_of_its_riders_have_left(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        rider = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 1)
        rider.cancel()
        flat.finder.gate.set()
        await flat.until(lambda: flat.resident == {"m0"})
        assert flat.cache.snapshot()[0].leases == 0

    async def test_the_finder_hears_whether_anybody_still_waits(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        rider = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 1)
        assert flat.finder.is_wanted()
        rider.cancel()
        await asyncio.wait([rider])
        assert not flat.finder.is_wanted()
        another = asyncio.create_task(ride(flat, "m0"))
        await flat.until(flat.finder.is_wanted)
        flat.finder.gate.set()
        await another
        assert flat.finder.searches == 1

    async def test_what_is_loaded_ahead_is_wanted_although_nobody_waits(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        warming = asyncio.create_task(flat.cache.warm(key_of("m0"), source("m0")))
        await flat.until(lambda: flat.finder.searches == 1)
        assert flat.finder.is_wanted()
        flat.finder.gate.set()
        await warming

    async def test_the_finder_is_told_what_is_in_use(self, flat: Flat) -> None:
        await flat.use("m0", "m1")
        assert flat.finder.in_use == {flat.finder.models["m0"].manifest.digest}

    async def test_a_model_without_an_address_is_not_resident(self, flat: Flat) -> None:
        with pytest.raises(NotResident):
            async with flat.cache.lease(key_of("m0"), None):
                pass
        await flat.use("m0")
        async with flat.cache.lease(key_of("m0"), None) as lease:
            assert not isinstance(lease.model, RemoteModel)
            assert lease.model.run(text_call("a")).output("embedding").data[0, 0] == ord("m")

    async def test_loading_ahead_is_refused_while_it_is_there_or_on_its_way(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        loading = asyncio.create_task(flat.cache.load(key_of("m0"), source("m0")))
        await flat.until(lambda: flat.finder.searches == 1)
        with pytest.raises(AlreadyLoaded):
            await flat.cache.load(key_of("m0"), source("m0"))
        flat.finder.gate.set()
        await loading
        with pytest.raises(AlreadyLoaded):
            await flat.cache.load(key_of("m0"), source("m0"))


class TestEviction:
    async def test_the_least_recently_used_leaves(self, flat: Flat) -> None:
        await flat.use("m0", "m1", "m2", "m3", "m0", "m4")
        assert flat.resident == {"m0", "m2", "m3", "m4"}
        await flat.use("m5")
        assert flat.resident == {"m0", "m3", "m4", "m5"}

    async def test_a_model_that_is_lent_out_stays(self, flat: Flat) -> None:
        async with flat.cache.lease(key_of("m0"), source("m0")):
            await flat.use("m1", "m2", "m3", "m4", "m5")
            assert "m0" in flat.resident
        flat.cache.check()

    async def test_a_model_that_is_too_large_is_refused_and_the_others_stay(self, flat: Flat) -> None:
        await flat.use("m0", "m1")
        flat.finder.put("huge", 50_000)
        with pytest.raises(NeverFits, match="raise --memory"):
            await flat.use("huge")
        assert flat.resident == {"m0", "m1"}
        assert len(flat.entries("refuse")) == 1
        assert flat.entries("evict") == []

    async def test_memory_that_only_the_heap_keeps_is_given_back_before_models_pay_for_it(
        self, flat: Flat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await flat.use("m0", "m1")
        kept_by_the_heap = [10_000]
        monkeypatch.setattr(flat.backend, "shrink", kept_by_the_heap.clear)
        monkeypatch.setattr(books_module, "anonymous_bytes", lambda: sum([17_000, *kept_by_the_heap]))
        await flat.use("m2")
        assert flat.resident == {"m0", "m1", "m2"}
        assert kept_by_the_heap == []

    async def test_what_is_shared_needs_no_room_twice(self, flat: Flat) -> None:
        for index in range(8):
            flat.finder.put(f"s{index}", 0, shared={"frozen": 4_000})
        await flat.use("s0", "s1", "s2", "s3")
        assert len(flat.resident) == 4
        assert flat.books.balance().mapped == 4_000

    async def test_idle_models_of_another_architecture_make_room_with_all_they_share(self, flat: Flat) -> None:
        await flat.use("m0", "m1")
        flat.finder.put("other", graph="another")
        async with asyncio.timeout(1):
            await flat.use("other")
        assert flat.resident == {"other"}

    async def test_when_all_are_lent_out_a_load_waits_for_one_to_come_back(self, flat: Flat) -> None:
        leave, arrived = asyncio.Event(), list[str]()
        riders = [asyncio.create_task(ride(flat, f"m{i}", arrived, leave)) for i in range(4)]
        await flat.until(lambda: len(arrived) == 4)
        waiting = asyncio.create_task(ride(flat, "m4"))
        await flat.until(lambda: flat.finder.searches == 5)
        await asyncio.sleep(0)
        assert not waiting.done()
        leave.set()
        await asyncio.gather(waiting, *riders)
        assert "m4" in flat.resident
        assert len(flat.entries("evict")) == 1

    async def test_a_wait_in_vain_ends_with_the_reason(self) -> None:
        async with running_flat(BASE + SESSION + 2_000, anonymous_share=1.0, patience_s=0.05) as flat:
            for name in ("a", "b", "c"):
                flat.finder.put(name)
            async with flat.cache.lease(key_of("a"), source("a")):
                async with asyncio.timeout(1):  # each waits its own time, not one after the other
                    results = await asyncio.gather(*(ride(flat, name) for name in ("b", "c")), return_exceptions=True)
                assert [type(result) for result in results] == [OutOfMemory, OutOfMemory]
                assert all("call again" in str(result) for result in results)
            await flat.use("b")
            assert flat.resident == {"b"}

    async def test_a_model_that_leaves_and_is_wanted_at_once_comes_back(self, flat: Flat) -> None:
        await flat.use("m0")
        for _ in range(50):
            _, lease = await asyncio.gather(flat.cache.unload(key_of("m0")), ride(flat, "m0"))
            assert lease.model is not None
            await flat.use("m0")
            flat.cache.check()

    async def test_the_engine_gives_memory_back_when_the_last_model_goes(self, flat: Flat) -> None:
        await flat.use("m0", "m1")
        await flat.cache.unload(key_of("m0"))
        assert flat.backend.shrinks == 0
        await flat.cache.unload(key_of("m1"))
        assert flat.backend.shrinks == 1
        assert flat.books.balance().anonymous == BASE


class TestUnloading:
    async def test_it_waits_for_the_riders(self, flat: Flat) -> None:
        leave, arrived = asyncio.Event(), list[str]()
        rider = asyncio.create_task(ride(flat, "m0", arrived, leave))
        await flat.until(lambda: arrived == ["m0"])
        unloading = asyncio.create_task(flat.cache.unload(key_of("m0")))
        await asyncio.sleep(0)
        assert not unloading.done()
        leave.set()
        await asyncio.gather(rider, unloading)
        assert flat.resident == set()
        assert flat.books.balance().models == 0

    async def test_a_model_that_still_loads_with_no_rider_left_is_awaited_and_then_goes(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        rider = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 1)
        rider.cancel()
        await asyncio.sleep(0)
        unloading = asyncio.create_task(flat.cache.unload(key_of("m0")))
        await asyncio.sleep(0)
        flat.finder.gate.set()
        async with asyncio.timeout(1):
            await unloading
        assert flat.backend.loads == 1
        assert (flat.resident, flat.books.balance().models) == (set(), 0)

    async def test_a_model_whose_load_fails_is_gone_already(self, flat: Flat) -> None:
        flat.finder.gate.clear()
        flat.finder.failures["m0"] = BadPackage("broken")
        rider = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 1)
        unloading = asyncio.create_task(flat.cache.unload(key_of("m0")))
        await asyncio.sleep(0)
        flat.finder.gate.set()
        with pytest.raises(BadPackage):
            await rider
        async with asyncio.timeout(1):
            await unloading

    async def test_a_model_that_is_not_there_is_said_to_be(self, flat: Flat) -> None:
        with pytest.raises(NotResident):
            await flat.cache.unload(key_of("m0"))

    async def test_two_who_unload_the_same_model_both_succeed(self, flat: Flat) -> None:
        leave, arrived = asyncio.Event(), list[str]()
        rider = asyncio.create_task(ride(flat, "m0", arrived, leave))
        await flat.until(lambda: arrived == ["m0"])
        both = [asyncio.create_task(flat.cache.unload(key_of("m0"))) for _ in range(2)]
        await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(rider, *both)
        assert len(flat.entries("unload")) == 1


class TestBudget:
    async def test_a_smaller_budget_evicts_at_once(self, flat: Flat) -> None:
        await flat.use("m0", "m1", "m2", "m3")
        await flat.cache.set_memory(BASE + SESSION + 2 * (OWN + 1_000))
        assert flat.resident == {"m2", "m3"}
        assert flat.journal.evictions == {"shrunk": 2}

    async def test_a_budget_that_what_is_in_use_exceeds_is_not_taken(self) -> None:
        async with running_flat(50_000, anonymous_share=1.0, patience_s=0.02) as flat:
            flat.finder.put("a", 5_000)
            async with flat.cache.lease(key_of("a"), source("a")):
                with pytest.raises(OutOfMemory):
                    await flat.cache.set_memory(BASE + SESSION)
            assert flat.cache.balance().memory_limit == 50_000

    async def test_a_larger_budget_admits_more(self, flat: Flat) -> None:
        await flat.cache.set_memory(100_000)
        await flat.use(*(f"m{i}" for i in range(10)))
        assert len(flat.resident) == 10


async def test_decisions_are_noted_with_their_reasons(flat: Flat) -> None:
    await flat.use("m0", "m1", "m2", "m3", "m4")
    await flat.cache.unload(key_of("m4"))
    (evicted,) = flat.entries("evict")
    assert evicted.model == source("m0").uri
    assert f"room for {source('m4').uri}: lacked" in evicted.reason
    assert [entry.model for entry in flat.entries("unload")] == [source("m4").uri]
    assert all("new of" in entry.reason for entry in flat.entries("load"))
    assert flat.journal.counts == {"load": 5, "evict": 1, "unload": 1}
    assert flat.journal.evictions == {"mapped": 1, "asked": 1}


async def test_the_snapshot_shows_the_most_recently_used_first(flat: Flat) -> None:
    await flat.use("m0", "m1", "m0")
    flat.clock.advance(10)
    first, second = flat.cache.snapshot()
    assert (first.uri, first.idle_s, first.mapped_bytes) == (source("m0").uri, 10, 1_000)
    assert second.idle_s == 11
    assert flat.cache.source_of(key_of("m0")) == source("m0")
    assert flat.cache.source_of(key_of("m9")) is None


NAMES = st.sampled_from([f"m{i}" for i in range(7)])


class InlineExecutor(Executor):
    """Runs the work at once, so that the order of things is the loop's alone and can be replayed."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (it belongs to whoever asks for the result)
            future.set_exception(error)
        return future


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time passes only when everybody waits for it; if they wait for nothing, that is a deadlock."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.clock: ManualClock | None = None
        """Goes with the loop's time, if set."""
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        poll = selector.select

        def select(timeout: float | None = None) -> list[Any]:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self._now_s += max(0.0, timeout)
            if self.clock is not None:
                self.clock.advance(max(0.0, timeout))
            return poll(0)

        selector.select = select  # type: ignore[method-assign]  # the one place where a loop sleeps

    def time(self) -> float:
        return self._now_s


class CacheMachine(RuleBasedStateMachine):
    """Any order of calls: nothing in use leaves, and the books balance."""

    SHARING = LRU

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.stack = AsyncExitStack()
        memory = BASE + 2 * SESSION + 4 * (OWN + 1_000)
        self.flat = self.loop.run_until_complete(
            self.stack.enter_async_context(running_flat(memory, anonymous_share=0.9, threads=InlineExecutor(), sharing=self.SHARING))
        )
        for index in range(7):
            self.flat.finder.put(f"m{index}", 400 * index, graph=f"g{index % 3}", shared={f"frozen {index % 2}": 600})
        self.leases: list[tuple[str, AsyncExitStack]] = []

    def teardown(self) -> None:
        while self.leases:
            self.end_lease(0)
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.close()

    @rule(name=NAMES)
    def use(self, name: str) -> None:
        self.begin_lease(name)
        if self.leases and self.leases[-1][0] == name:
            self.end_lease(len(self.leases) - 1)

    @rule(name=NAMES)
    def begin_lease(self, name: str) -> None:
        stack = AsyncExitStack()
        self.flat.clock.advance(1)
        try:
            lease = self.loop.run_until_complete(stack.enter_async_context(self.flat.cache.lease(key_of(name), source(name))))
        except OutOfMemory:
            return
        assert lease.digest == self.flat.finder.models[name].manifest.digest
        self.leases.append((name, stack))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.end_lease(data.draw(st.integers(0, len(self.leases) - 1)))

    @rule(names=st.lists(NAMES, min_size=2, max_size=6))
    def use_at_once(self, names: list[str]) -> None:
        rides = [ride(self.flat, name) for name in names]
        results = self.loop.run_until_complete(_gathered(rides))
        assert all(not isinstance(result, BaseException) or isinstance(result, OutOfMemory) for result in results)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        if name in self.flat.resident - {held for held, _ in self.leases}:
            self.loop.run_until_complete(self.flat.cache.unload(key_of(name)))
            assert name not in self.flat.resident

    @rule(name=NAMES)
    def unload_and_use_at_once(self, name: str) -> None:
        if name in self.flat.resident - {held for held, _ in self.leases}:
            calls = [self.flat.cache.unload(key_of(name)), ride(self.flat, name)]
            results = self.loop.run_until_complete(_gathered(calls))
            assert all(not isinstance(result, BaseException) or isinstance(result, OutOfMemory) for result in results)

    @rule(models=st.integers(0, 8))
    def set_memory(self, models: int) -> None:
        try:
            self.loop.run_until_complete(self.flat.cache.set_memory(BASE + SESSION + models * 2_000))
        except OutOfMemory:
            assert self.leases

    @rule(name=NAMES)
    def fail_to_load(self, name: str) -> None:
        if name not in self.flat.resident:
            self.flat.backend.failure = BadPackage("broken")
            with pytest.raises((BadPackage, OutOfMemory)):
                self.loop.run_until_complete(ride(self.flat, name))
            self.flat.backend.failure = None

    @invariant()
    def what_is_lent_out_is_there_and_the_books_balance(self) -> None:
        self.flat.cache.check()
        assert {name for name, _ in self.leases} <= self.flat.resident
        counts = {info.uri.rsplit("/", 1)[1]: info.leases for info in self.flat.cache.snapshot()}
        assert sum(counts.values()) == len(self.leases)

    @invariant()
    def nothing_exceeds_the_budget_unless_it_is_in_use(self) -> None:
        balance = self.flat.books.balance()
        idle = self.flat.resident - {name for name, _ in self.leases}
        if balance.anonymous + balance.mapped > balance.memory_limit or balance.anonymous > balance.anonymous_limit:
            assert not idle, "over the budget, and an idle model is still there"

    def end_lease(self, index: int) -> None:
        _, stack = self.leases.pop(index)
        self.loop.run_until_complete(stack.aclose())


async def _gathered(calls: list[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand decisions are not worth reading."""
    monkeypatch.setattr("flatshare.instance.cache.log", type("Silent", (), {"info": staticmethod(lambda *_, **__: None)}))


CacheMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
TestCacheMachine = CacheMachine.TestCase


class TestChangedArtifacts:
    async def test_a_changed_artifact_is_served_from_the_next_request_on(self, flat: Flat) -> None:
        await flat.use("m0")
        flat.finder.models["m0"] = stored_model("m0 retrained", {"weights of m0, retrained": 900})
        flat.clock.advance(11)
        assert (await ride(flat, "m0")).digest == stored_model("m0", {}).manifest.digest, "this rider only has it looked at"
        await flat.until(lambda: len(flat.entries("replace")) == 1)
        assert (await ride(flat, "m0")).digest == stored_model("m0 retrained", {}).manifest.digest
        assert flat.books.balance().mapped == 900

    async def test_riders_of_the_old_version_keep_it_until_they_leave(self, flat: Flat) -> None:
        arrived, leave = list[str](), asyncio.Event()
        old = asyncio.create_task(ride(flat, "m0", arrived, leave))
        await flat.until(lambda: arrived == ["m0"])
        flat.finder.models["m0"] = stored_model("m0 retrained", {"weights of m0, retrained": 900})
        flat.clock.advance(11)
        await ride(flat, "m0")
        await flat.until(lambda: not flat.resident)
        new = asyncio.create_task(ride(flat, "m0"))
        await flat.until(lambda: flat.finder.searches == 3)
        assert not new.done()
        leave.set()
        assert (await old).digest == stored_model("m0", {}).manifest.digest
        assert (await new).digest == stored_model("m0 retrained", {}).manifest.digest

    async def test_an_artifact_that_is_gone_or_broken_does_not_end_what_serves(self, flat: Flat) -> None:
        await flat.use("m0")
        flat.finder.failures["m0"] = BadPackage("half an upload")
        flat.clock.advance(11)
        await ride(flat, "m0")
        await flat.until(lambda: len(flat.entries("recheck")) == 1)
        assert "half an upload" in flat.entries("recheck")[0].reason
        assert (await ride(flat, "m0")).cold_start_s is None

    async def test_an_artifact_is_not_looked_at_with_each_request(self, flat: Flat) -> None:
        for _ in range(30):
            await flat.use("m0")
            await asyncio.sleep(0)
        assert flat.finder.searches == 1 + 2, "one load, and every ten seconds a look"

    async def test_where_changes_are_to_wait_for_an_eviction_they_do_and_then_they_count(self) -> None:
        async with running_flat(100_000, recheck_s=math.inf) as flat:
            flat.finder.put("m0")
            await flat.use("m0")
            flat.finder.models["m0"] = stored_model("m0 retrained", {"weights of m0, retrained": 900})
            for _ in range(5):
                flat.clock.advance(1e6)
                assert (await ride(flat, "m0")).digest == stored_model("m0", {}).manifest.digest
                await asyncio.sleep(0)
            assert flat.finder.searches == 1
            await flat.cache.unload(key_of("m0"))
            assert (await ride(flat, "m0")).digest == stored_model("m0 retrained", {}).manifest.digest
