"""What every driver promises, asked of each that we ship."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flatshare.control.drivers.base import Driver, RunningInstance
from flatshare.control.drivers.fake import FakeDriver
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import InstanceId

from .conftest import local_driver, spec

GONE = InstanceId("i-gone")


@dataclass(frozen=True, slots=True)
class Subject:
    driver: Driver
    kill: Callable[[RunningInstance], None]


@pytest.fixture(params=["fake", "local"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param == "fake":
        fake = FakeDriver()
        yield Subject(fake, lambda instance: fake.kill(instance.id))
        return
    async with local_driver(tmp_path) as local:
        yield Subject(local, lambda instance: os.kill(instance.pid, signal.SIGKILL))


async def test_an_instance_lives_from_start_to_stop(subject: Subject) -> None:
    instance = await subject.driver.start(spec())
    assert instance.id == "i-1"
    assert subject.driver.is_alive(instance.id)
    exited = asyncio.create_task(subject.driver.exited(instance.id))
    await subject.driver.stop(instance.id)
    await asyncio.wait_for(exited, 5)
    assert not subject.driver.is_alive(instance.id)


async def test_the_death_of_an_instance_is_told_and_stopping_it_is_no_error(subject: Subject) -> None:
    instance = await subject.driver.start(spec())
    exited = asyncio.create_task(subject.driver.exited(instance.id))
    await asyncio.sleep(0)
    subject.kill(instance)
    await asyncio.wait_for(exited, 5)
    assert not subject.driver.is_alive(instance.id)
    await subject.driver.stop(instance.id)
    await subject.driver.stop(instance.id)


async def test_the_share_of_memory_can_be_changed(subject: Subject) -> None:
    instance = await subject.driver.start(spec())
    await subject.driver.set_memory(instance.id, 500)


async def test_an_instance_that_has_gone_is_no_riddle(subject: Subject) -> None:
    await asyncio.wait_for(subject.driver.exited(GONE), 5)
    assert not subject.driver.is_alive(GONE)
    await subject.driver.stop(GONE)
    with pytest.raises(InstanceGone):
        await subject.driver.set_memory(GONE, 500)


async def test_closing_ends_every_instance(subject: Subject) -> None:
    instances = await asyncio.gather(subject.driver.start(spec("i-1")), subject.driver.start(spec("i-2")))
    await subject.driver.close()
    assert not any(subject.driver.is_alive(instance.id) for instance in instances)
