import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flatshare.control.drivers.base import InstanceSpec
from flatshare.control.drivers.local import LocalDriver
from flatshare.core.ids import InstanceId
from flatshare.core.settings import FleetSettings

STAND_IN = Path(__file__).with_name("stand_in.py")


def spec(name: str = "i-1", memory_bytes: int = 1000) -> InstanceSpec:
    return InstanceSpec(InstanceId(name), "endpoint/variant", memory_bytes)


def stand_in(behaviour: str) -> tuple[str, ...]:
    return (sys.executable, str(STAND_IN), behaviour)


@asynccontextmanager
async def local_driver(folder: Path, behaviour: str = "good", *, start_timeout_s: float = 10.0) -> AsyncIterator[LocalDriver]:
    settings = FleetSettings(store_dir=folder / "store", log_dir=folder / "log", start_timeout_s=start_timeout_s, stop_timeout_s=0.2)
    driver = LocalDriver(settings, command=stand_in(behaviour))
    try:
        yield driver
    finally:
        await driver.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    async with local_driver(tmp_path) as driver:
        yield driver
