"""Traffic moves to a new fleet as a DeploymentConfig says, on a clock that the test turns."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flatshare.core.clock import ManualClock
from flatshare.core.ids import EndpointName
from flatshare.policy.diff import Status
from tests.control.calls import call, call_configure, call_deploy, variant
from tests.control.conftest import House, running_house

E = EndpointName("e")
HALF = {"Type": "CAPACITY_PERCENT", "Value": 50}


@pytest.fixture
async def serving() -> AsyncIterator[House]:
    """Endpoint `e` with four instances of variant `v`, and a configuration `next` with four more."""
    async with running_house(clock=ManualClock()) as house:
        await prepare(house)
        yield house


async def prepare(house: House) -> None:
    await call_deploy(house.control, variants=[variant("v", count=4)])
    await call_configure(house.control, "next", [variant("v", count=4)])
    await house.until_status("e", Status.IN_SERVICE)


async def update(house: House, config: dict[str, Any], name: str = "next") -> None:
    await call(house.control, "UpdateEndpoint", EndpointName="e", EndpointConfigName=name, DeploymentConfig=config)


def blue_green(kind: str, *, wait_s: int = 60, **more: Any) -> dict[str, Any]:
    routing = {"Type": kind, "WaitIntervalInSeconds": wait_s} | {k: v for k, v in more.items() if k.endswith("Size")}
    others = {k: v for k, v in more.items() if not k.endswith("Size")}
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing} | others}


def weights(house: House) -> list[float]:
    """Of the variants that requests are drawn from, the old one first."""
    return [round(route.weight, 6) for route in house.routes.endpoints[E].variants]


def counts(house: House) -> list[int]:
    return [len(route.instances) for route in house.routes.endpoints[E].variants]


async def turn(house: House, seconds: float) -> None:
    assert isinstance(house.clock, ManualClock)
    house.clock.advance(seconds)


async def status(house: House) -> Mapping[str, Any]:
    return await call(house.control, "DescribeEndpoint", EndpointName="e")


async def test_a_canary_gets_its_share_then_everything_and_the_old_fleet_goes_after_its_time(serving: House) -> None:
    await update(serving, blue_green("CANARY", CanarySize={"Type": "INSTANCE_COUNT", "Value": 1}, TerminationWaitInSeconds=30))
    await serving.until(lambda: weights(serving) == [0.75, 0.25])
    assert counts(serving) == [4, 4]
    described = await status(serving)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("Updating", "e-config")
    assert described["ProductionVariants"][0]["VariantStatus"][0]["Status"] == "Baking"
    await turn(serving, 60)
    await serving.until(lambda: weights(serving) == [1.0])
    assert (await status(serving))["EndpointStatus"] == "Updating"
    assert len(serving.driver.instances) == 8
    await turn(serving, 89)
    assert (await status(serving))["EndpointStatus"] == "Updating"
    await turn(serving, 1)
    await serving.until_status("e", Status.IN_SERVICE)
    await serving.until(lambda: len(serving.driver.instances) == 4)
    assert (await status(serving))["EndpointConfigName"] == "next"


async def test_linear_traffic_moves_in_equal_steps(serving: House) -> None:
    await update(serving, blue_green("LINEAR", LinearStepSize={"Type": "CAPACITY_PERCENT", "Value": 25}))
    for moved in (0.25, 0.5, 0.75):
        await serving.until(lambda moved=moved: weights(serving) == [1 - moved, moved])  # type: ignore[misc]
        await turn(serving, 60)
    await serving.until(lambda: weights(serving) == [1.0])
    await turn(serving, 60)
    await serving.until_status("e", Status.IN_SERVICE)


async def test_a_rolling_update_never_runs_both_fleets_whole(serving: House) -> None:
    size = {"Type": "CAPACITY_PERCENT", "Value": 25}
    await update(serving, {"RollingUpdatePolicy": {"MaximumBatchSize": size, "WaitIntervalInSeconds": 60}})
    most = 0
    for moved in (0.25, 0.5, 0.75):
        await serving.until(lambda moved=moved: weights(serving) == [1 - moved, moved])  # type: ignore[misc]
        most = max(most, len(serving.driver.instances))
        await turn(serving, 60)
    await serving.until(lambda: weights(serving) == [1.0])
    await turn(serving, 60)
    await serving.until_status("e", Status.IN_SERVICE)
    await serving.until(lambda: len(serving.driver.instances) == 4)
    assert most <= 6


async def test_a_new_fleet_that_fails_on_its_way_gives_the_traffic_back(serving: House) -> None:
    await update(serving, blue_green("CANARY", CanarySize=HALF))
    await serving.until(lambda: weights(serving) == [0.5, 0.5])
    new = serving.routes.endpoints[E].variants[1].instances
    serving.driver.start_failure = "out of paint"
    serving.driver.kill(new[0].id)
    await serving.until_status("e", Status.IN_SERVICE)
    assert (weights(serving), counts(serving)) == ([1.0], [4])
    described = await status(serving)
    assert described["EndpointConfigName"] == "e-config"
    assert "out of paint" in described["FailureReason"]


async def test_what_is_not_done_in_time_is_rolled_back(serving: House) -> None:
    serving.driver.may_start.clear()
    await update(serving, blue_green("ALL_AT_ONCE", wait_s=0, MaximumExecutionTimeoutInSeconds=600))
    await serving.until_status("e", Status.UPDATING)
    await turn(serving, 600)
    await serving.until_status("e", Status.IN_SERVICE)
    described = await status(serving)
    assert described["EndpointConfigName"] == "e-config"
    assert "MaximumExecutionTimeoutInSeconds of 600" in described["FailureReason"]


async def test_a_rolling_update_that_fails_serves_on_until_the_old_fleet_is_whole(serving: House) -> None:
    await update(serving, {"RollingUpdatePolicy": {"MaximumBatchSize": HALF, "WaitIntervalInSeconds": 60}})
    await serving.until(lambda: weights(serving) == [0.5, 0.5])
    await turn(serving, 60)
    await serving.until(lambda: weights(serving) == [1.0] and len(serving.driver.instances) == 6)
    serving.driver.start_failure = "out of paint"
    serving.driver.kill(serving.routes.endpoints[E].variants[0].instances[0].id)
    async with asyncio.timeout(10):
        while (await status(serving))["EndpointStatus"] != "UpdateRollbackFailed":
            await turn(serving, 1)  # a start that failed is tried again after a delay
    await serving.until_status("e", Status.UPDATE_ROLLBACK_FAILED)  # the two that are missing do not start either
    described = await status(serving)
    assert "out of paint" in described["FailureReason"]
    assert sum(counts(serving)) > 0, "it serves on with what it has"
    await call(serving.control, "DeleteEndpoint", EndpointName="e")
    await serving.until(lambda: not serving.driver.instances)


async def test_a_rolling_update_that_fails_early_goes_back(serving: House) -> None:
    await update(serving, {"RollingUpdatePolicy": {"MaximumBatchSize": HALF, "WaitIntervalInSeconds": 60}})
    await serving.until(lambda: weights(serving) == [0.5, 0.5] and len(serving.driver.instances) == 8)
    serving.driver.start_failure = "out of paint"
    serving.driver.kill(serving.routes.endpoints[E].variants[1].instances[0].id)
    await serving.until_status("e", Status.IN_SERVICE)
    assert (weights(serving), counts(serving)) == ([1.0], [4])
    assert (await status(serving))["EndpointConfigName"] == "e-config"


async def test_a_canary_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    url, clock = f"sqlite:///{tmp_path}/control.db", ManualClock()
    async with running_house(url, clock=clock) as first:
        await prepare(first)
        await update(first, blue_green("CANARY", CanarySize=HALF))
        await first.until(lambda: weights(first) == [0.5, 0.5])
    async with running_house(url, clock=clock) as second:
        await second.until(lambda: counts(second) == [4, 4])
        assert weights(second) == [0.5, 0.5]
        clock.advance(60)
        await second.until(lambda: weights(second) == [1.0])
        clock.advance(60)
        await second.until_status("e", Status.IN_SERVICE)
        assert (await status(second))["EndpointConfigName"] == "next"
