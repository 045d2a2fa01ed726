"""The workbench: a bounded number waits, and every run tells how long it took."""

import asyncio
import queue
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput, Overloaded, OverQuota, TooLate
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.settings import QueueSettings, SharingSettings, TenantSettings
from flatshare.core.signature import Signature, Task
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import StopSign
from flatshare.instance.job import Job, Mergeable, Run, Ticket
from flatshare.instance.workbench import Workbench
from flatshare.policy import pace
from tests.calls import text_call

A, B = Tenant("a"), Tenant("b")


def waiting(most: int) -> SharingSettings:
    return SharingSettings(queue=QueueSettings(max_waiting=most))


async def test_the_result_comes_with_its_seconds() -> None:
    bench = Workbench(1, waiting(1))
    run = await bench.run(lambda: 42)
    assert (run.result, run.seconds >= 0, bench.in_flight) == (42, True, 0)
    bench.close()


async def test_an_error_comes_through_and_frees_the_place() -> None:
    bench = Workbench(1, waiting(0))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await bench.run(lambda: 1 / 0)
    assert bench.in_flight == 0
    bench.close()


async def test_more_than_may_wait_are_turned_away() -> None:
    bench, gate = Workbench(2, waiting(3)), threading.Event()
    runs = [asyncio.create_task(bench.run(gate.wait)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="5 requests wait"):
        await bench.run(gate.wait)
    gate.set()
    assert [run.result for run in await asyncio.gather(*runs)] == [True] * 5
    assert (await bench.run(lambda: 1)).result == 1
    bench.close()


async def test_one_who_leaves_the_queue_is_not_run() -> None:
    bench, gate, ran = Workbench(1, waiting(5)), threading.Event(), list[str]()
    first = asyncio.create_task(bench.run(gate.wait))
    second = asyncio.create_task(bench.run(lambda: ran.append("second")))
    third = asyncio.create_task(bench.run(lambda: ran.append("third")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, third)
    assert ran == ["third"]
    assert bench.in_flight == 0
    bench.close()


async def test_one_who_leaves_while_its_run_goes_on_keeps_its_place_until_it_is_over() -> None:
    bench, begun, gate = Workbench(1, waiting(0)), threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return gate.wait()

    leaving = asyncio.create_task(bench.run(work))
    await asyncio.to_thread(begun.wait)
    leaving.cancel()
    await asyncio.sleep(0)
    assert not leaving.done()
    with pytest.raises(Overloaded):
        await bench.run(gate.wait)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert bench.in_flight == 0
    bench.close()


async def test_a_lone_caller_is_served_by_one_worker() -> None:
    bench, threads = Workbench(3, waiting(5)), set[int]()
    for _ in range(20):
        await bench.run(lambda: threads.add(threading.get_ident()))
        await until_idle(bench, 3)
    assert len(threads) == 1, "the others' caches are left alone"
    bench.close()


async def test_no_job_waits_while_a_worker_is_idle() -> None:
    bench, gate, all_run = Workbench(3, waiting(5)), threading.Event(), threading.Barrier(2, timeout=10)
    first = asyncio.create_task(bench.run(gate.wait))
    await asyncio.gather(*(bench.run(all_run.wait) for _ in range(2)))
    gate.set()
    assert (await first).result
    bench.close()


class TestFairness:
    async def test_a_guest_is_served_before_the_flood_that_came_first(self) -> None:
        bench, gate, order = Workbench(1, waiting(100)), threading.Event(), list[str]()
        first = asyncio.create_task(bench.run(gate.wait))
        await asyncio.sleep(0)
        flood = [asyncio.create_task(bench.run(lambda i=i: order.append(f"a{i}"), ticket=Ticket(A))) for i in range(50)]  # type: ignore[misc]
        await asyncio.sleep(0)
        guest = asyncio.create_task(bench.run(lambda: order.append("b"), ticket=Ticket(B)))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, guest, *flood)
        assert order.index("b") <= 1
        bench.close()

    async def test_a_tenant_over_its_quota_is_told_so_and_others_are_let_in(self) -> None:
        settings = SharingSettings(queue=QueueSettings(max_waiting_per_tenant=3), tenants={B: TenantSettings(max_waiting=1)})
        bench, gate = Workbench(1, settings), threading.Event()
        runs = [asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A))) for _ in range(4)]
        await until_waiting(bench, A, 3)
        with pytest.raises(OverQuota, match="tenant a"):
            await bench.run(gate.wait, ticket=Ticket(A))
        runs.append(asyncio.create_task(bench.run(gate.wait, ticket=Ticket(B))))
        await asyncio.sleep(0)
        with pytest.raises(OverQuota, match="tenant b"):
            await bench.run(gate.wait, ticket=Ticket(B))
        gate.set()
        await asyncio.gather(*runs)
        bench.close()

    async def test_long_runs_leave_a_worker_to_short_ones(self) -> None:
        bench, gate = Workbench(2, waiting(100)), threading.Event()
        short = await bench.run(lambda: 1, ticket=Ticket(B))
        long = [asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=5.0))) for _ in range(4)]
        await until_waiting(bench, A, 3)
        async with asyncio.timeout(10):
            short = await bench.run(lambda: 2, ticket=Ticket(B))
        assert short.result == 2
        assert bench.waiting_by_tenant() == {A: 3}
        gate.set()
        await asyncio.gather(*long)
        bench.close()

    async def test_a_long_run_that_had_to_wait_has_its_turn_when_no_short_ones_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flatshare.instance.workbench._KEEP_FOR_SHORT_S", 0.05)
        bench, both = Workbench(2, waiting(100)), threading.Barrier(2, timeout=10)
        await bench.run(lambda: 1, ticket=Ticket(B))
        await asyncio.gather(*(bench.run(both.wait, ticket=Ticket(A, run_s=5.0)) for _ in range(2)))
        bench.close()

    async def test_one_that_comes_as_the_wait_for_short_ones_ends_is_run_by_who_it_was_handed_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_looking, has_come = threading.Event(), threading.Event()

        class Desk(queue.SimpleQueue[list[Job]]):
            """The time is over at the very moment at which a job is put here."""

            def get(self, block: bool = True, timeout: float | None = None) -> list[Job]:
                if timeout is None:
                    return super().get(block)
                is_looking.set()
                assert has_come.wait(10)
                raise queue.Empty

        monkeypatch.setattr(queue, "SimpleQueue", Desk)
        bench, gates = Workbench(2, waiting(100)), [threading.Event() for _ in range(3)]
        await bench.run(lambda: 1, ticket=Ticket(B))
        long = [asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=5.0))) for gate in gates[:2]]
        await asyncio.to_thread(is_looking.wait, 10)  # the second long one is held back, and a worker waits for short ones
        gates[0].set()
        await long[0]
        await until_waiting(bench, A, 0)
        handed = asyncio.create_task(bench.run(gates[2].wait, ticket=Ticket(B)))
        await asyncio.sleep(0)
        has_come.set()
        next_one = asyncio.create_task(bench.run(lambda: 4, ticket=Ticket(B)))
        await until_waiting(bench, B, 1)  # both workers are busy
        for gate in gates[1:]:
            gate.set()
        async with asyncio.timeout(10):
            assert [(await run).result for run in (long[1], handed, next_one)] == [True, True, 4]
        bench.close()

    async def test_with_nobody_else_about_long_runs_take_all_workers(self) -> None:
        bench, both = Workbench(2, waiting(100)), threading.Barrier(2, timeout=10)
        await asyncio.gather(*(bench.run(both.wait, ticket=Ticket(A, run_s=5.0)) for _ in range(2)))
        bench.close()

    async def test_a_short_run_goes_between_the_parts_of_long_ones_that_hold_all_workers(self) -> None:
        bench, models = Workbench(2, waiting(100)), [Parted(), Parted()]
        long = [asyncio.create_task(bench.infer(model, ModelKey(str(n)), text_call(MANY), A, None)) for n, model in enumerate(models)]
        for model in models:
            assert await asyncio.to_thread(model.is_running.wait, 10)
        short = asyncio.create_task(bench.run(lambda: 1, ticket=Ticket(B)))
        await until_waiting(bench, B, 1)
        models[0].may_go_on.release()
        async with asyncio.timeout(10):
            assert (await short).result == 1
        assert not any(run.done() for run in long)
        for model in models:
            model.may_go_on.release(9)
        runs = await asyncio.gather(*long)
        assert [model.parts for model in models] == [5, 5]
        assert all(run.seconds > 0 for run in runs)
        bench.close()

    async def test_a_run_that_turns_out_to_be_long_gives_way_too_and_what_it_gave_is_not_counted_as_its_own(self) -> None:
        bench, model = Workbench(1, SharingSettings(queue=QueueSettings(long_run_ms=0.001))), Parted()
        long = asyncio.create_task(bench.infer(model, ModelKey("m"), text_call("one"), A, None))
        assert await asyncio.to_thread(model.is_running.wait, 10)
        between = asyncio.create_task(bench.run(partial(time.sleep, 0.3), ticket=Ticket(B, run_s=0.0)))
        await until_waiting(bench, B, 1)
        model.may_go_on.release(9)
        run, _ = await long, await between
        assert run.waited_s >= 0.3
        assert run.seconds < run.waited_s
        bench.close()

    async def test_who_was_let_go_first_gives_way_to_nobody(self) -> None:
        bench, outer, inner = Workbench(1, SharingSettings(queue=QueueSettings(long_run_ms=0.001))), Parted(), Parted()
        ends = list[str]()
        long = asyncio.create_task(bench.infer(outer, ModelKey("outer"), text_call("one"), A, None, lambda _: ends.append("outer")))
        assert await asyncio.to_thread(outer.is_running.wait, 10)
        ticket, sign = Ticket(B, run_s=0.0), StopSign(bench._give_way)
        first = asyncio.create_task(bench.run(partial(inner.run, text_call("two"), sign), sign, ticket, lambda _: ends.append("first")))
        second = asyncio.create_task(bench.run(lambda: 1, ticket=ticket, deliver=lambda _: ends.append("second")))
        await until_waiting(bench, B, 2)
        for model in (outer, inner):
            model.may_go_on.release(9)
        await asyncio.gather(long, first, second)
        assert ends[0] == "first"
        bench.close()

    async def test_a_long_run_does_not_give_way_while_another_worker_serves_short_ones(self) -> None:
        bench, model, gate = Workbench(2, waiting(100)), Parted(), threading.Event()
        long = asyncio.create_task(bench.infer(model, ModelKey("m"), text_call(MANY), A, None))
        assert await asyncio.to_thread(model.is_running.wait, 10)
        serving = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(B)))
        await until_idle(bench, 0)
        queued = asyncio.create_task(bench.run(lambda: 1, ticket=Ticket(B)))
        await until_waiting(bench, B, 1)
        model.may_go_on.release(9)
        await long
        gate.set()
        await asyncio.gather(serving, queued)
        assert model.away_s < 0.01
        bench.close()

    async def test_a_short_one_with_a_deadline_is_not_refused_for_a_long_run_that_gives_way(self) -> None:
        bench, model = Workbench(1, waiting(100)), Parted()
        long = asyncio.create_task(bench.infer(model, ModelKey("m"), text_call(4 * MANY), A, None))  # 2.4 s, by what is expected
        assert await asyncio.to_thread(model.is_running.wait, 10)
        short = asyncio.create_task(bench.run(lambda: 1, ticket=Ticket(B, deadline_s=time.monotonic() + 2.0)))
        await until_waiting(bench, B, 1)
        model.may_go_on.release(9)
        assert (await short).result == 1
        await long
        bench.close()

    async def test_one_behind_the_last_part_is_refused_at_once(self) -> None:
        bench, model = Workbench(1, waiting(100)), Parted(count=1)
        long = asyncio.create_task(bench.infer(model, ModelKey("m"), text_call(4 * MANY), A, None))
        assert await asyncio.to_thread(model.is_running.wait, 10)
        with pytest.raises(TooLate, match="would take about"):
            await bench.run(lambda: 1, ticket=Ticket(B, deadline_s=time.monotonic() + 0.5))
        model.may_go_on.release(9)
        await long
        bench.close()

    async def test_a_run_that_would_be_late_for_it_gives_way_to_nobody(self) -> None:
        bench, model, ends = Workbench(1, waiting(100)), Parted(), list[str]()
        call = text_call(4 * MANY)
        due_s = time.monotonic() + bench.expected_s(ModelKey("m"), pace.units_of(call)) + 0.05  # a short run may take 0.06
        long = asyncio.create_task(bench.infer(model, ModelKey("m"), call, A, due_s, lambda _: ends.append("long")))
        assert await asyncio.to_thread(model.is_running.wait, 10)
        short = asyncio.create_task(bench.run(lambda: 1, ticket=Ticket(B), deliver=lambda _: ends.append("short")))
        await until_waiting(bench, B, 1)
        model.may_go_on.release(9)
        await asyncio.gather(long, short)
        assert ends == ["long", "short"]
        bench.close()

    async def test_calls_without_any_text_harm_no_worker(self) -> None:
        """Such a call is refused by its model; two that wait for one run are compared by their lengths before."""
        bench, model, gate = Workbench(1, waiting(100)), Parted(count=1), threading.Event()
        empty = replace(text_call("x"), inputs={"text": Tensor("text", "BYTES", np.array([], object))})
        model.may_go_on.release(9)
        running = asyncio.create_task(bench.run(gate.wait))
        await until_running(bench)
        calls = [asyncio.create_task(bench.infer(model, ModelKey("m"), empty, A, None)) for _ in range(2)]
        await until_waiting(bench, A, 2)
        gate.set()
        async with asyncio.timeout(10):
            await asyncio.gather(running, *calls, return_exceptions=True)
        assert (await bench.run(lambda: 4)).result == 4
        bench.close()

    async def test_a_guest_brings_no_more_along_than_a_short_run_may_take(self) -> None:
        bench, host, guest = Workbench(1, waiting(100)), Parted(), Parted(count=1)
        long = asyncio.create_task(bench.infer(host, ModelKey("host"), text_call(MANY), A, None))
        assert await asyncio.to_thread(host.is_running.wait, 10)
        calls = [asyncio.create_task(bench.infer(guest, ModelKey("g"), text_call("word " * 60), A, None)) for _ in range(4)]
        await until_waiting(bench, A, 4)
        for model in (host, guest):
            model.may_go_on.release(99)
        await asyncio.gather(long, *calls, return_exceptions=True)
        assert bench.merged == 0, "each takes 0.05 s by what is expected, so two are more than 0.06"
        bench.close()


class TestDeadlines:
    async def test_what_would_be_too_late_is_refused_at_once(self) -> None:
        bench, gate = Workbench(1, waiting(100)), threading.Event()
        running = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=3.0)))
        queued = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=3.0)))
        await until_waiting(bench, A, 1)
        with pytest.raises(TooLate, match="would take about"):
            await bench.run(gate.wait, ticket=Ticket(A, run_s=0.1, deadline_s=time.monotonic() + 2))
        in_time = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(B, run_s=0.1, deadline_s=time.monotonic() + 3_600)))
        gate.set()
        await asyncio.gather(running, queued, in_time)
        bench.close()

    async def test_one_whose_deadline_passed_in_the_queue_is_not_run(self) -> None:
        bench, gate, ran = Workbench(1, waiting(100)), threading.Event(), list[str]()
        running = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=0.0001)))
        await until_running(bench)
        deadline_s = time.monotonic() + 0.5
        late = asyncio.create_task(bench.run(lambda: ran.append("late"), ticket=Ticket(A, run_s=0.0001, deadline_s=deadline_s)))
        await until_waiting(bench, A, 1)
        await asyncio.sleep(deadline_s - time.monotonic() + 0.01)  # a loop's timers may be a millisecond early
        gate.set()
        with pytest.raises(TooLate, match="while the request waited"):
            await late
        await running
        assert ran == []
        assert bench.in_flight == 0
        bench.close()

    async def test_one_whose_deadline_passes_is_told_so_although_its_turn_has_not_come(self) -> None:
        bench, gate = Workbench(1, waiting(100)), threading.Event()
        running = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=0.0001)))
        await until_running(bench)
        async with asyncio.timeout(10):
            with pytest.raises(TooLate, match="while the request waited"):
                await bench.run(lambda: 1, ticket=Ticket(A, run_s=0.0001, deadline_s=time.monotonic() + 0.05))
        assert (bench.waiting, bench.in_flight) == (0, 1)
        gate.set()
        await running
        bench.close()


class TestBatches:
    async def test_what_waits_for_one_model_shares_a_run_and_each_gets_its_own(self) -> None:
        model, bench, gate = Counting(), Workbench(1, waiting(100)), threading.Event()
        first = asyncio.create_task(bench.run(gate.wait))
        await until_running(bench)
        calls = [text_call(f"{word} is a word") for word in ("one", "two", "three")]
        runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=model.ticket(call))) for call in calls]
        await until_waiting(bench, A, 3)
        gate.set()
        results = [run.result for run in await asyncio.gather(*runs)]
        assert [result.parameters["tokens"] for result in results] == [(len(call.inputs["text"].texts()[0]),) for call in calls]
        assert (model.runs, bench.merged) == (1, 3)
        await first
        bench.close()

    async def test_one_s_mistake_is_not_the_others(self) -> None:
        model, bench, gate = Counting(), Workbench(1, waiting(100)), threading.Event()
        first = asyncio.create_task(bench.run(gate.wait))
        await until_running(bench)
        calls = [text_call("all is well"), text_call("this is bad")]
        runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=model.ticket(call))) for call in calls]
        await until_waiting(bench, A, 2)
        gate.set()
        good, bad = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(bad, BadInput)
        assert isinstance(good, Run)
        assert good.result.parameters["tokens"] == (11,)
        await first
        bench.close()

    async def test_a_rider_who_left_is_not_in_the_batch(self) -> None:
        model, bench, gate = Counting(), Workbench(1, waiting(100)), threading.Event()
        first = asyncio.create_task(bench.run(gate.wait))
        await until_running(bench)
        calls = [text_call(f"{word} is a word") for word in ("one", "two", "six")]
        runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=model.ticket(call))) for call in calls]
        await until_waiting(bench, A, 3)
        runs[1].cancel()
        await until_waiting(bench, A, 2)
        gate.set()
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert model.texts == ["one is a word", "six is a word"]
        await first
        bench.close()

    async def test_texts_of_another_length_or_beyond_the_budget_are_not_waited_for(self) -> None:
        model, gate = Counting(), threading.Event()
        bench = Workbench(1, SharingSettings(queue=QueueSettings(batch_tokens=20)))
        first = asyncio.create_task(bench.run(gate.wait))
        await until_running(bench)
        calls = [text_call("short one"), text_call("a much longer text than that " * 20), *(text_call("short two") for _ in range(8))]
        runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=model.ticket(call))) for call in calls]
        await until_waiting(bench, A, 10)
        gate.set()
        await asyncio.gather(first, *runs)
        assert model.runs >= 3
        bench.close()

    async def test_while_another_tenant_is_about_a_shared_run_is_no_longer_than_a_short_one(self) -> None:
        settings = SharingSettings(queue=QueueSettings(long_run_ms=20))
        for guest, runs_wanted in ((None, 1), (B, 4)):
            model, bench, gate = Counting(), Workbench(1, settings), threading.Event()
            first = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(guest or A)))
            await until_running(bench)
            calls = [text_call(f"{number} is a number") for number in range(8)]
            tickets = [replace(model.ticket(call), run_s=0.01) for call in calls]
            runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=t)) for call, t in zip(calls, tickets, strict=True)]
            await until_waiting(bench, A, 8)
            gate.set()
            await asyncio.gather(first, *runs)
            assert model.runs == runs_wanted
            bench.close()

    async def test_nobody_is_taken_along_who_would_make_another_miss_its_deadline(self) -> None:
        settings = SharingSettings(queue=QueueSettings(long_run_ms=60_000))
        model, bench, gate = Counting(), Workbench(1, settings), threading.Event()
        first = asyncio.create_task(bench.run(gate.wait, ticket=Ticket(A, run_s=0.0001)))
        await until_running(bench)
        deadline_s = time.monotonic() + 60
        calls = [text_call(f"{number} is a number") for number in range(4)]
        tickets = [replace(model.ticket(call), run_s=25.0, deadline_s=None if n else deadline_s) for n, call in enumerate(calls)]
        runs = [asyncio.create_task(bench.run(partial(model.run, call), ticket=t)) for call, t in zip(calls, tickets, strict=True)]
        await until_waiting(bench, A, 4)
        gate.set()
        await asyncio.gather(first, *runs)
        assert model.runs == 2, "two take 50 of the 60 seconds that the first one has; the others have a run of their own"
        bench.close()

    async def test_a_lone_caller_is_run_at_once_and_alone(self) -> None:
        model, bench = Counting(), Workbench(1, waiting(100))
        call = text_call("alone")
        run = await bench.run(partial(model.run, call), ticket=model.ticket(call))
        assert (run.share, bench.merged) == (1.0, 0)
        bench.close()


class Counting:
    """A model that answers with the length of each text."""

    signature = Signature(Task.EMBEDDING, "fake", (), ())

    def __init__(self) -> None:
        self.runs = 0
        self.texts: list[str] = []

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        texts = call.inputs["text"].texts()
        if any("bad" in text for text in texts):
            raise BadInput("a bad text")
        self.runs += 1
        self.texts += texts
        lengths = tuple(len(text) for text in texts)
        return InferResult((Tensor.of("embedding", np.array([lengths], np.float32).T),), {"tokens": lengths})

    def ticket(self, call: InferCall) -> Ticket:
        return Ticket(A, units=pace.units_of(call), mergeable=Mergeable(self, call))


MANY = "word " * 2_000
"""So many tokens that a run of them is long."""


class Parted:
    """Runs in five parts; waits for leave before each but the first."""

    signature = Signature(Task.EMBEDDING, "test", (), ())

    def __init__(self, count: int = 5) -> None:
        self.count = count
        self.is_running = threading.Event()
        self.may_go_on = threading.Semaphore(0)
        self.parts = 0
        self.away_s = 0.0

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        assert stop is not None
        while self.parts < self.count:
            stop.between_parts(self.count - self.parts)
            self.parts += 1
            self.is_running.set()
            assert self.may_go_on.acquire(timeout=10)
        self.away_s = stop.away_s
        return InferResult(())


async def until_waiting(bench: Workbench, tenant: Tenant, count: int) -> None:
    async with asyncio.timeout(10):
        while bench.waiting_by_tenant().get(tenant, 0) != count:  # noqa: ASYNC110  # a thread takes from the queue, which has no event
            await asyncio.sleep(0)


async def until_idle(bench: Workbench, workers: int) -> None:
    async with asyncio.timeout(10):
        while len(bench._idle) != workers:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0)


async def until_running(bench: Workbench) -> None:
    async with asyncio.timeout(10):
        while bench.waiting or not bench.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)
