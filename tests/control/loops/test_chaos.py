"""Random edits and random deaths, then quiet: whatever happened, the fleet must end as desired state says."""

import asyncio
import random

import orjson
import pytest

from flatshare.control.plane import Control
from flatshare.core.clock import ManualClock
from flatshare.policy.diff import Phase, Status
from flatshare.wire.http import Request
from tests.control.calls import call_configure, call_deploy, variant
from tests.control.conftest import MEMORY_BYTES, House, running_house

NAMES = ["e", "f", "g"]


async def attempt(control: Control, operation: str, **params: object) -> None:
    """A call that may be refused, but not fail."""
    reply = await control.handle(Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, orjson.dumps(params)))
    assert reply.status in {200, 400}, reply.body


async def disturb(house: House, dice: random.Random) -> None:
    name, config = dice.choice(NAMES), dice.choice(["e-config", "two"])
    change = [{"VariantName": "AllTraffic", "DesiredInstanceCount": dice.randint(1, 3), "DesiredWeight": 2.0}]
    match dice.randrange(8):
        case 0 | 1:
            await attempt(house.control, "CreateEndpoint", EndpointName=name, EndpointConfigName=config)
        case 2:
            await attempt(house.control, "UpdateEndpoint", EndpointName=name, EndpointConfigName=config)
        case 3:
            await attempt(house.control, "UpdateEndpointWeightsAndCapacities", EndpointName=name, DesiredWeightsAndCapacities=change)
        case 4:
            await attempt(house.control, "DeleteEndpoint", EndpointName=name)
        case 5:
            if house.driver.instances:
                house.driver.kill(dice.choice(list(house.driver.instances)))
        case 6:
            house.driver.start_failure = dice.choice([None, "no room"])
        case _:
            switch = dice.choice([house.driver.may_start, house.driver.may_stop])
            switch.clear() if switch.is_set() else switch.set()


def is_settled(house: House) -> bool:
    snapshot = house.control.snapshot()
    return all(e.status in {Status.IN_SERVICE, Status.FAILED} for e in snapshot) and all(
        i.phase is Phase.READY for e in snapshot for i in e.instances
    )


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_disturbance_the_fleet_is_as_desired(seed: int) -> None:
    dice = random.Random(seed)
    clock = ManualClock()
    async with running_house(clock=clock) as house:
        await call_deploy(house.control)
        await call_configure(house.control, "two", [variant(count=2)])
        for _ in range(60):
            await disturb(house, dice)
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
        house.driver.start_failure = None
        house.driver.may_start.set()
        house.driver.may_stop.set()
        clock.advance(120)
        await house.until(lambda: is_settled(house) and shows_the_truth(house))
        assert sum(i.memory_bytes for i in house.driver.instances.values()) <= MEMORY_BYTES


def shows_the_truth(house: House) -> bool:
    """What runs, what the snapshot says and where the routes lead is one and the same."""
    running = set(house.driver.instances)
    shown = {i.id for e in house.control.snapshot() for i in e.instances}
    routed = {i.id for e in house.routes.endpoints.values() for v in e.variants for i in v.instances}
    wanted = sum(
        variant.count
        for e in house.control._reconciler.desired()
        if e.status is Status.IN_SERVICE and e.active
        for variant in e.active.variants
    )
    shares = {i.memory_bytes for i in house.driver.instances.values()}
    return running == shown == routed and len(running) == wanted and len(shares) <= 1
