from dataclasses import replace

import pytest

from flatshare.control.drivers.fake import FakeDriver
from flatshare.control.state import Definition, Rows, State
from flatshare.core.ids import EndpointName
from flatshare.policy.diff import Phase, Status

from .calls import call, call_configure, call_deploy, variant
from .conftest import MEMORY_BYTES, running_house

E = EndpointName("e")


async def test_a_restart_keeps_everything_and_brings_the_endpoints_back(database_url: str) -> None:
    async with running_house(database_url) as first:
        await call_deploy(first.control, variants=[variant(count=2)])
        await first.until_status("e", Status.IN_SERVICE)
        before = await call(first.control, "DescribeEndpoint", EndpointName="e")
    assert first.driver.instances == {}
    assert first.routes.endpoints == {}
    driver = FakeDriver()
    driver.may_start.clear()
    async with running_house(database_url, driver=driver) as second:
        assert (await call(second.control, "DescribeEndpoint", EndpointName="e"))["EndpointStatus"] == "Updating"
        assert len((await call(second.control, "ListModels"))["Models"]) == 1
        driver.may_start.set()
        await second.until_status("e", Status.IN_SERVICE)
        after = await call(second.control, "DescribeEndpoint", EndpointName="e")
        assert after | {"LastModifiedTime": 0} == before | {"LastModifiedTime": 0}
        assert len(second.routes.endpoints[E].variants[0].instances) == 2


async def test_an_endpoint_that_cannot_be_brought_back_is_out_of_service_and_may_be_deleted(database_url: str) -> None:
    async with running_house(database_url) as first:
        await call_deploy(first.control)
        await first.until_status("e", Status.IN_SERVICE)
    driver = FakeDriver()
    driver.start_failure = "the disk has gone"
    async with running_house(database_url, driver=driver) as second:
        await second.until_status("e", Status.OUT_OF_SERVICE)
        described = await call(second.control, "DescribeEndpoint", EndpointName="e")
        assert described["FailureReason"] == "the disk has gone"
        await call(second.control, "DeleteEndpoint", EndpointName="e")
        await second.until(lambda: second.control.snapshot() == ())


async def test_a_deletion_and_a_creation_that_a_restart_interrupted_are_finished(database_url: str) -> None:
    driver = FakeDriver()
    async with running_house(database_url, driver=driver) as first:
        await call_deploy(first.control, "gone")
        await first.until_status("gone", Status.IN_SERVICE)
        driver.may_start.clear()
        await call(first.control, "CreateEndpoint", EndpointName="e", EndpointConfigName="gone-config")
        driver.may_stop.clear()
        await call(first.control, "DeleteEndpoint", EndpointName="gone")
        driver.may_stop.set()
    async with running_house(database_url) as second:
        await second.until_status("e", Status.IN_SERVICE)
        await second.until(lambda: [e.name for e in second.control.snapshot()] == ["e"])


async def test_an_update_that_a_restart_interrupted_goes_on(database_url: str) -> None:
    driver = FakeDriver()
    async with running_house(database_url, driver=driver) as first:
        await call_deploy(first.control)
        await first.until_status("e", Status.IN_SERVICE)
        await call_configure(first.control, "next", [variant(count=2)])
        driver.may_start.clear()
        await call(first.control, "UpdateEndpoint", EndpointName="e", EndpointConfigName="next")
    async with running_house(database_url) as second:
        await second.until_status("e", Status.IN_SERVICE)
        assert (await call(second.control, "DescribeEndpoint", EndpointName="e"))["EndpointConfigName"] == "next"


async def test_the_snapshot_shows_endpoints_with_their_instances() -> None:
    async with running_house() as house:
        await call_deploy(house.control, variants=[variant(count=2)])
        await house.until_status("e", Status.IN_SERVICE)
        (endpoint,) = house.control.snapshot()
        assert {(i.phase, i.memory_bytes, i.slot.variant) for i in endpoint.instances} == {(Phase.READY, MEMORY_BYTES // 2, "AllTraffic")}
        assert all(i.socket_path and i.pid for i in endpoint.instances)


async def test_a_transaction_that_fails_changes_nothing(database_url: str) -> None:
    state = State(database_url)
    await state.open(now_s=0.0)
    definition = Definition("m", 1.0, {"a": 1})
    await state.change(lambda rows: rows.models.add(definition))

    def add_and_fail(rows: Rows) -> None:
        rows.models.add(replace(definition, name="n"))
        raise LookupError

    with pytest.raises(LookupError):
        await state.change(add_and_fail)
    assert await state.look(lambda rows: rows.models.find("m")) == definition
    assert await state.look(lambda rows: rows.models.find("n")) is None
    await state.close()
