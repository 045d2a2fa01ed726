"""Alive is one question, ready for callers another."""

import asyncio
from dataclasses import replace

import pytest

from flatshare.core.errors import InstanceGone
from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.gateway.readiness import Readiness

A, B = EndpointName("a"), EndpointName("b")


def routes(**instances: int) -> Routes:
    """Endpoints by name, each with so many instances."""
    made = {}
    for name, count in instances.items():
        addresses = tuple(InstanceAddress(InstanceId(f"{name}{n}"), f"/{name}{n}") for n in range(count))
        variant = VariantRoute(VariantName("v"), 1.0, "s3://b/p", addresses)
        made[EndpointName(name)] = EndpointRoute(EndpointName(name), is_multi_model=True, variants=(variant,))
    return Routes(made)


def _is_ready(readiness: Readiness) -> bool:
    """A call, so that no earlier look is believed."""
    return readiness.is_ready


async def test_it_is_ready_when_every_endpoint_of_the_earlier_run_has_an_instance() -> None:
    readiness = Readiness()
    assert not _is_ready(readiness)
    assert readiness.reason == "the server starts"
    readiness.start((A, B), routes(a=0, b=0), give_up_s=60)
    assert not _is_ready(readiness)
    assert readiness.reason == "endpoints are on their way back: a, b"
    readiness.look(routes(a=1, b=0))
    assert readiness.reason == "endpoints are on their way back: b"
    readiness.look(routes(a=1, b=1))
    assert _is_ready(readiness)
    readiness.look(routes(a=0, b=1))
    assert _is_ready(readiness), "one endpoint's trouble must not take the callers of the others away"


async def test_an_endpoint_that_was_deleted_meanwhile_is_not_waited_for() -> None:
    readiness = Readiness()
    readiness.start((A,), routes(), give_up_s=60)
    assert _is_ready(readiness)


async def test_an_endpoint_that_does_not_come_back_is_waited_for_only_so_long() -> None:
    readiness = Readiness()
    readiness.start((A,), routes(a=0), give_up_s=0.01)
    assert not _is_ready(readiness)
    async with asyncio.timeout(10):
        while not _is_ready(readiness):  # noqa: ASYNC110  # nobody waits for it, so there is no event
            await asyncio.sleep(0.001)


async def test_a_server_that_stops_is_not_ready_and_says_so() -> None:
    readiness = Readiness()
    readiness.start((), routes(), give_up_s=60)
    readiness.require()
    readiness.drain()
    with pytest.raises(InstanceGone, match="the server stops"):
        readiness.require()


async def test_calls_wait_for_the_start_and_hear_of_a_stop_before_it() -> None:
    started, stopped = Readiness(), Readiness()
    waiting = asyncio.create_task(started.until_started())
    refused = asyncio.create_task(stopped.until_started())
    await asyncio.sleep(0)
    assert not waiting.done()
    started.start((A,), routes(a=0), give_up_s=60)
    stopped.drain()
    await asyncio.wait_for(waiting, 10)
    with pytest.raises(InstanceGone, match="the server stops"):
        await asyncio.wait_for(refused, 10)


async def test_a_server_that_stands_by_is_not_ready_and_brings_endpoints_back_when_it_takes_over() -> None:
    readiness = Readiness()
    readiness.start((A,), replace(routes(a=0), stands_by=True), give_up_s=0.01)
    await asyncio.sleep(0.03)  # giving up on endpoints makes nobody a leader
    assert not _is_ready(readiness)
    assert readiness.reason.startswith("the server stands by")
    readiness.look(replace(routes(a=0, b=0), stands_by=True))
    readiness.look(routes(a=0, b=0))
    assert readiness.reason == "endpoints are on their way back: a, b"
    readiness.look(routes(a=1, b=1))
    assert _is_ready(readiness)
    readiness.look(replace(routes(a=0, b=0), stands_by=True))
    assert not _is_ready(readiness)
