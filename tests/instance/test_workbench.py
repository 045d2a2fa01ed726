"""The workbench: a bounded number waits, and every run tells how long it took."""

import asyncio
import threading

import pytest

from flatshare.core.errors import Overloaded
from flatshare.instance.workbench import Workbench


async def test_the_result_comes_with_its_seconds() -> None:
    bench = Workbench(1, 1)
    run = await bench.run(lambda: 42)
    assert (run.result, run.seconds >= 0, bench.in_flight) == (42, True, 0)
    bench.close()


async def test_an_error_comes_through_and_frees_the_place() -> None:
    bench = Workbench(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await bench.run(lambda: 1 / 0)
    assert bench.in_flight == 0
    bench.close()


async def test_more_than_may_wait_are_turned_away() -> None:
    bench, gate = Workbench(2, 3), threading.Event()
    runs = [asyncio.create_task(bench.run(gate.wait)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="5 requests wait"):
        await bench.run(gate.wait)
    gate.set()
    assert [run.result for run in await asyncio.gather(*runs)] == [True] * 5
    assert (await bench.run(lambda: 1)).result == 1
    bench.close()


async def test_one_who_leaves_the_queue_is_not_run() -> None:
    bench, gate, ran = Workbench(1, 5), threading.Event(), list[str]()
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
    bench, begun, gate = Workbench(1, 0), threading.Event(), threading.Event()

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
