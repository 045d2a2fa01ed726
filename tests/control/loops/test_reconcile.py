from collections.abc import AsyncIterator

import pytest

from flatshare.control.drivers.base import InstanceSpec, RunningInstance
from flatshare.control.drivers.fake import FakeDriver
from flatshare.core.clock import ManualClock
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import EndpointName, InstanceId
from flatshare.policy.diff import Status
from tests.control.calls import call, call_configure, call_deploy, variant
from tests.control.conftest import MEMORY_BYTES, House, running_house

E = EndpointName("e")


@pytest.fixture
async def serving() -> AsyncIterator[House]:
    """Endpoint `e` with one instance, on a clock that the test turns."""
    async with running_house(clock=ManualClock()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.IN_SERVICE)
        yield house


def only_instance(house: House) -> InstanceId:
    (instance,) = house.driver.instances
    return instance


def routed(house: House) -> list[InstanceId]:
    route = house.routes.endpoints.get(E)
    return [] if route is None else [i.id for variant in route.variants for i in variant.instances]


async def test_a_killed_instance_leaves_the_routes_and_is_replaced(serving: House) -> None:
    dead = only_instance(serving)
    serving.driver.may_start.clear()
    serving.driver.kill(dead)
    await serving.until(lambda: routed(serving) == [])
    assert E in serving.routes.endpoints  # it exists, though nobody answers
    assert serving.endpoint("e").status is Status.IN_SERVICE
    serving.driver.may_start.set()
    await serving.until(lambda: len(routed(serving)) == 1)
    assert routed(serving) == [only_instance(serving)] != [dead]


async def test_an_instance_whose_death_nobody_told_is_noticed_on_the_tick(serving: House) -> None:
    dead = only_instance(serving)
    del serving.driver.instances[dead]  # `exited` goes on waiting
    await serving.until(lambda: len(routed(serving)) == 1 and routed(serving) != [dead])


async def test_an_instance_that_keeps_dying_is_started_less_and_less_often(serving: House) -> None:
    clock = serving.clock
    assert isinstance(clock, ManualClock)

    async def die_and_count_starts(count: int) -> None:
        serving.driver.kill(only_instance(serving))
        await serving.until(lambda: len(serving.driver.started) == count)
        await serving.until(lambda: len(routed(serving)) == 1)

    await die_and_count_starts(2)  # at once
    serving.driver.kill(only_instance(serving))
    await serving.until(lambda: routed(serving) == [])
    clock.advance(0.9)
    await call(serving.control, "DeleteModel", ModelName="m")  # wakes the loop
    await serving.until(lambda: not serving.driver.instances)
    assert len(serving.driver.started) == 2
    clock.advance(0.2)
    await serving.until(lambda: len(serving.driver.started) == 3)


async def test_an_update_serves_from_the_old_instances_until_all_new_ones_answer(serving: House) -> None:
    old = only_instance(serving)
    await call_configure(serving.control, "next", [variant(count=2)])
    serving.driver.may_start.clear()
    await call(serving.control, "UpdateEndpoint", EndpointName="e", EndpointConfigName="next")
    await serving.until(lambda: len(serving.driver.started) == 3)
    assert routed(serving) == [old]
    serving.driver.may_start.set()
    await serving.until_status("e", Status.IN_SERVICE)
    await serving.until(lambda: len(serving.driver.instances) == 2)
    assert serving.driver.stopped == [old]
    assert set(routed(serving)) == set(serving.driver.instances)


async def test_no_moment_of_an_update_is_without_a_routed_instance(serving: House) -> None:
    published = len(serving.published)
    await call(serving.control, "UpdateEndpoint", EndpointName="e", EndpointConfigName="e-config")
    await serving.until_status("e", Status.IN_SERVICE)
    for routes in serving.published[published:]:
        assert all(variant.instances for variant in routes.endpoints[E].variants)


async def test_an_instance_is_out_of_the_routes_before_it_is_stopped(serving: House) -> None:
    serving.driver.may_stop.clear()
    await call(serving.control, "DeleteEndpoint", EndpointName="e")
    await serving.until(lambda: serving.routes.endpoints == {})
    assert serving.driver.stopped == []
    described = await call(serving.control, "DescribeEndpoint", EndpointName="e")
    assert described["EndpointStatus"] == "Deleting"
    serving.driver.may_stop.set()
    await serving.until(lambda: serving.control.snapshot() == ())


async def test_the_memory_is_shared_equally_and_never_more_than_there_is(serving: House) -> None:
    def shares() -> list[int]:
        return [instance.memory_bytes for instance in serving.driver.instances.values()]

    assert shares() == [MEMORY_BYTES]
    serving.driver.may_start.clear()
    await call(serving.control, "CreateEndpoint", EndpointName="f", EndpointConfigName="e-config")
    await serving.until(lambda: len(serving.driver.started) == 2)
    assert shares() == [MEMORY_BYTES // 2]  # the others gave way before it starts
    assert serving.driver.started[1].memory_bytes == MEMORY_BYTES // 2
    serving.driver.may_start.set()
    await serving.until_status("f", Status.IN_SERVICE)
    assert shares() == [MEMORY_BYTES // 2] * 2
    await call(serving.control, "DeleteEndpoint", EndpointName="f")
    await serving.until(lambda: shares() == [MEMORY_BYTES])


async def test_an_instance_that_refuses_its_share_does_not_stop_the_loop(serving: House) -> None:
    class Refusing(FakeDriver):
        async def set_memory(self, instance_id: InstanceId, memory_bytes: int) -> None:
            raise TimeoutError

    async with running_house(driver=Refusing()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.IN_SERVICE)
        await call(house.control, "CreateEndpoint", EndpointName="f", EndpointConfigName="e-config")
        await house.until_status("f", Status.IN_SERVICE)


async def test_a_driver_with_a_bug_fails_the_endpoint_and_not_the_loop() -> None:
    class Broken(FakeDriver):
        async def start(self, spec: InstanceSpec) -> RunningInstance:
            raise LookupError("a bug")

    async with running_house(driver=Broken()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.FAILED)
        await call(house.control, "DeleteEndpoint", EndpointName="e")
        await house.until(lambda: house.control.snapshot() == ())


async def test_an_error_without_words_fails_the_endpoint_all_the_same() -> None:
    class Slow(FakeDriver):
        async def start(self, spec: InstanceSpec) -> RunningInstance:
            raise TimeoutError

    async with running_house(driver=Slow()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.FAILED)
        assert (await call(house.control, "DescribeEndpoint", EndpointName="e"))["FailureReason"] == "TimeoutError"


async def test_what_goes_wrong_in_tidying_up_after_a_dead_instance_does_not_keep_it_from_being_replaced() -> None:
    class Untidy(FakeDriver):
        async def stop(self, instance_id: InstanceId) -> None:
            if instance_id not in self.instances:
                raise InstanceGone("there is nothing to tidy")
            await super().stop(instance_id)

    async with running_house(driver=Untidy()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.IN_SERVICE)
        house.driver.kill(only_instance(house))
        await house.until(lambda: len(house.driver.started) == 2 and len(routed(house)) == 1)
        assert house.endpoint("e").status is Status.IN_SERVICE


async def test_a_stop_that_fails_is_tried_again() -> None:
    class Stubborn(FakeDriver):
        refusals = 2

        async def stop(self, instance_id: InstanceId) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise InstanceGone("the road to the instance is closed")
            await super().stop(instance_id)

    async with running_house(driver=Stubborn()) as house:
        await call_deploy(house.control)
        await house.until_status("e", Status.IN_SERVICE)
        await call(house.control, "DeleteEndpoint", EndpointName="e")
        await house.until(lambda: house.control.snapshot() == ())
        assert house.driver.instances == {}


async def test_a_database_that_is_away_for_a_moment_does_not_end_the_loop(serving: House, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    def fail(*_: object) -> tuple[()]:
        failures.append(1)
        raise OSError("the database is away")

    with monkeypatch.context() as away:
        away.setattr("flatshare.control.loops.reconcile._desired", fail)
        serving.driver.kill(only_instance(serving))
        await serving.until(lambda: len(failures) > 1)
    await serving.until(lambda: len(serving.driver.started) == 2)


async def test_closing_while_instances_start_leaves_none_behind() -> None:
    driver = FakeDriver()
    driver.may_start.clear()
    async with running_house(driver=driver) as house:
        await call_deploy(house.control, variants=[variant(count=3)])
        await house.until(lambda: len(driver.started) == 3)
    assert driver.instances == {}
