"""Step 4 of 4 on a deployment's path: make the instances match desired state, again and again.

Level-triggered: every pass looks at everything, so a missed event or a crash in mid-pass is made good by the next. What to do
is decided by `policy/diff.py`; this loop looks and acts.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from flatshare.control.drivers.base import Driver
from flatshare.control.fleet import Fleet, InstanceSnapshot
from flatshare.control.state import Rows, State
from flatshare.core.clock import Clock
from flatshare.core.settings import FleetSettings
from flatshare.core.state import Routes
from flatshare.policy import diff
from flatshare.policy.diff import DesiredEndpoint, Mark, Observed, Plan, Slot, Status, Verdict
from flatshare.telemetry.log import get_logger

log = get_logger("control")


class Reconciler:
    def __init__(
        self,
        state: State,
        driver: Driver,
        clock: Clock,
        publish: Callable[[Routes], None],
        *,
        fleet: FleetSettings,
        tick_s: float,
    ) -> None:
        self._state = state
        self._clock = clock
        self._publish = publish
        self._tick_s = tick_s
        self.has_looked = asyncio.Event()
        """Set once the first pass is over: what was there before is routed, if only to say that it is not ready yet."""
        self._woken = asyncio.Event()
        self._fleet = Fleet(driver, clock, memory_bytes=fleet.memory_bytes, parallel_starts=fleet.parallel_starts, changed=self.wake)
        self._desired: tuple[DesiredEndpoint, ...] = ()
        self._published: Routes | None = None
        self._retry_at_s: float | None = None
        self._is_leader: bool | None = None

    async def run(self) -> None:
        """Until cancelled; then all instances are stopped before it returns."""
        async with self._fleet:
            try:
                while True:
                    await self._tick()
                    await self._pause()
            finally:
                self._show(Routes({}))  # nobody is sent to an instance that is about to stop

    def wake(self) -> None:
        """Desired state or the fleet has changed."""
        self._woken.set()

    def ready_counts(self) -> Mapping[Slot, int]:
        return self._fleet.ready_counts()

    def desired(self) -> tuple[DesiredEndpoint, ...]:
        """As of the last pass."""
        return self._desired

    def instances(self) -> tuple[InstanceSnapshot, ...]:
        return self._fleet.snapshot()

    async def _tick(self) -> None:
        self._woken.clear()
        try:
            await self._converge()
        except Exception:  # the loop's tick: a database that is away for a while must not end it
            log.exception("reconcile_failed")
        self.has_looked.set()

    async def _pause(self) -> None:
        """Until there is news, a delayed start is due, or the tick is over."""
        wait_s = self._tick_s
        if self._retry_at_s is not None:
            wait_s = min(wait_s, max(0.0, self._retry_at_s - self._clock.monotonic_s()))
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _converge(self) -> None:
        if not await self._has_lead():
            await self._stand_by()
            return
        self._desired = await self._state.look(_desired)
        self._fleet.notice_dead()
        plan = diff.plan(self._desired, self._fleet.observed(), now_s=self._clock.monotonic_s(), wall_s=self._clock.wall_s())
        self._show(plan.routes)
        if plan.marks and not await self._write(plan):
            self.wake()  # somebody edited an endpoint meanwhile: look again
            return
        self._fleet.stop(plan.stops)
        self._fleet.start(plan.starts)
        self._fleet.forget_troubles(slot for endpoint in self._desired for slot in diff.wanted_counts(endpoint))
        self._retry_at_s = plan.retry_at_s

    async def _has_lead(self) -> bool:
        """Of the control planes over one database one acts. Who takes over begins as after a restart: nothing runs."""
        is_leader = await self._state.is_leader()
        if is_leader and not self._is_leader:
            now_s = round(self._clock.wall_s(), 3)
            await self._state.change(lambda rows: take_back(rows, now_s=now_s))
        if is_leader is not self._is_leader:
            log.info("control_leads" if is_leader else "control_stands_by")
        self._is_leader = is_leader
        return is_leader

    async def _stand_by(self) -> None:
        """Endpoints are known here, so that callers are told to call again, but nothing runs here for them."""
        self._desired = await self._state.look(_desired)
        routes = diff.plan(self._desired, Observed(()), now_s=self._clock.monotonic_s()).routes
        self._show(replace(routes, stands_by=True))
        self._fleet.stop([instance.id for instance in self._fleet.snapshot()])
        self._retry_at_s = None

    def _show(self, routes: Routes) -> None:
        if routes != self._published:
            self._publish(routes)
            self._published = routes

    async def _write(self, plan: Plan) -> bool:
        """Whether every mark was still valid. Written after the routes are out: who reads InService can invoke."""
        now_s = round(self._clock.wall_s(), 3)
        written = await self._state.change(lambda rows: [_write_mark(rows, mark, now_s) for mark in plan.marks])
        for mark in plan.marks:
            log.info("endpoint_judged", endpoint=mark.endpoint, verdict=mark.verdict.name.lower(), reason=mark.reason)
        self.wake()  # what the marks have changed is looked at afresh
        return all(written)


def take_back(rows: Rows, *, now_s: float) -> None:
    """After a restart no instance runs: what was in service is `Updating` until its instances answer again."""
    for endpoint in rows.endpoints():
        if endpoint.desired.status in {Status.IN_SERVICE, Status.ROLLING_BACK, Status.OUT_OF_SERVICE}:
            target = None if endpoint.desired.status is Status.ROLLING_BACK else endpoint.desired.target
            desired = replace(endpoint.desired, status=Status.UPDATING, target=target)
            rows.save_endpoint(replace(endpoint, desired=desired, modified_s=now_s))


def _desired(rows: Rows) -> tuple[DesiredEndpoint, ...]:
    return tuple(endpoint.desired for endpoint in rows.endpoints())


def _write_mark(rows: Rows, mark: Mark, now_s: float) -> bool:
    endpoint = rows.endpoint(mark.endpoint)
    if endpoint is None or endpoint.desired.revision != mark.revision:
        return False
    desired = diff.judged(endpoint.desired, mark.verdict, mark.at_s)
    if desired is None:
        rows.remove_endpoint(mark.endpoint)
        return True
    keeps = mark.verdict in {Verdict.ROLLED_BACK, Verdict.ROLLING_BACK} and not mark.reason
    reason = endpoint.failure_reason if keeps else mark.reason or None
    rows.save_endpoint(replace(endpoint, desired=desired, modified_s=now_s, failure_reason=reason))
    return True
