"""The control plane over real processes."""

import asyncio
import os
import signal
from pathlib import Path

from flatshare.client.instance import InstanceClient
from flatshare.control.plane import Control
from flatshare.core.clock import SystemClock
from flatshare.core.ids import EndpointName
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.core.state import InstanceAddress, Routes
from tests.control.calls import call, call_deploy

from .conftest import local_driver


class Watcher:
    """Keeps the routes, and lets a test wait for them."""

    def __init__(self) -> None:
        self.routes = Routes({})
        self._changed = asyncio.Event()

    def publish(self, routes: Routes) -> None:
        self.routes = routes
        self._changed.set()

    async def instance_other_than(self, *known: InstanceAddress) -> InstanceAddress:
        async with asyncio.timeout(10):
            while True:
                endpoint = self.routes.endpoints.get(EndpointName("e"))
                new = [i for i in (endpoint.variants[0].instances if endpoint else ()) if i not in known]
                if new:
                    return new[0]
                self._changed.clear()
                await self._changed.wait()


async def test_a_process_that_is_killed_is_replaced_and_closing_ends_them_all(tmp_path: Path) -> None:
    watcher = Watcher()
    async with local_driver(tmp_path) as driver:
        # A tick of a minute: what happens within the test's seconds was not found by looking around.
        control = Control(
            ControlSettings(tick_s=60.0),
            FleetSettings(memory_bytes=1000),
            driver=driver,
            clock=SystemClock(),
            publish=watcher.publish,
        )
        await control.start()
        await call_deploy(control)
        first = await watcher.instance_other_than()
        (snapshot,) = control.snapshot()
        assert snapshot.instances[0].pid is not None
        os.kill(snapshot.instances[0].pid, signal.SIGKILL)
        second = await watcher.instance_other_than(first)
        client = InstanceClient(second.socket_path)
        assert (await client.request("GET", "/ping")).status == 200
        client.close()
        described = await call(control, "DescribeEndpoint", EndpointName="e")
        assert described["EndpointStatus"] == "InService"
        await control.close()
        assert not driver.is_alive(second.id)
        assert not Path(second.socket_path).exists()  # noqa: ASYNC240  (one look at a local folder)
