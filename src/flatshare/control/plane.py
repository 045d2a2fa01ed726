"""The control plane as one object: what `build.py` makes, starts, asks and closes."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from flatshare.control.app import ControlApp
from flatshare.control.drivers.base import Driver
from flatshare.control.fleet import InstanceSnapshot
from flatshare.control.loops.reconcile import Reconciler
from flatshare.control.releases import Published, Releases
from flatshare.control.residence import Below
from flatshare.control.state import State
from flatshare.core.clock import Clock
from flatshare.core.ids import EndpointName
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.core.state import Routes
from flatshare.policy.diff import Status
from flatshare.wire.aws_json import sagemaker_codec
from flatshare.wire.http import Reply, Request


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint and what runs for it, for the dashboard and the command line."""

    name: EndpointName
    status: Status
    instances: tuple[InstanceSnapshot, ...]


class Control:
    """Used on one event loop. `publish` is called on it, with all routes, each time they change."""

    def __init__(
        self,
        settings: ControlSettings,
        fleet: FleetSettings,
        *,
        driver: Driver,
        clock: Clock,
        publish: Callable[[Routes], None],
        publish_releases: Callable[[Published], None] = lambda _: None,
        below: Below | None = None,
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._state = State(settings.database_url)
        self._reconciler = Reconciler(self._state, driver, clock, publish, fleet=fleet, tick_s=settings.tick_s)
        self.releases = Releases(self._state, clock, publish_releases, tick_s=settings.tick_s)
        self._app = ControlApp(self._state, self._reconciler, clock, settings, fleet, self.releases, below)
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when calls are answered; endpoints of an earlier run are being brought back then."""
        await asyncio.to_thread(sagemaker_codec)
        await self._state.open(now_s=self._clock.wall_s())
        await self.releases.refresh()
        self._loops = [
            asyncio.create_task(self._reconciler.run(), name="reconcile"),
            asyncio.create_task(self.releases.follow(), name="releases"),
        ]
        await self._reconciler.has_looked.wait()

    async def handle(self, request: Request) -> Reply:
        """The handler of `POST /` with `X-Amz-Target: SageMaker.*` or `Flatshare.*`."""
        return await self._app.handle(request)

    def snapshot(self) -> tuple[EndpointSnapshot, ...]:
        instances = self._reconciler.instances()
        return tuple(
            EndpointSnapshot(e.name, e.status, tuple(i for i in instances if i.slot.endpoint == e.name)) for e in self._reconciler.desired()
        )

    async def close(self) -> None:
        """Stops all instances at the same time; desired state stays, for the next start."""
        for loop in self._loops:
            loop.cancel()
        for loop in self._loops:
            with contextlib.suppress(asyncio.CancelledError):
                await loop
        await self._driver.close()
        await self._state.close()
