"""Step 4 of 4 on a deployment's path: the instances that run, each with its life in one task, and their shares of the memory.

The shares are equal, and together never more than the memory of the fleet. Except that a starting instance keeps the
share that it was started with until it is ready, for it holds no model yet.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from flatshare.control.drivers.base import Driver, InstanceSpec, RunningInstance
from flatshare.core.clock import Clock
from flatshare.core.errors import FlatshareError
from flatshare.core.ids import InstanceId
from flatshare.policy.diff import Observed, ObservedInstance, Phase, Slot, Start, Trouble, trouble_after
from flatshare.telemetry.log import get_logger

log = get_logger("control")


@dataclass(frozen=True, slots=True)
class InstanceSnapshot:
    """One instance, for the dashboard and the command line."""

    id: InstanceId
    slot: Slot
    phase: Phase
    memory_bytes: int
    socket_path: str
    pid: int | None


class Fleet:
    """Starts, watches and stops instances. Entered by the loop that owns it; used on that loop only."""

    def __init__(self, driver: Driver, clock: Clock, *, memory_bytes: int, parallel_starts: int, changed: Callable[[], None]) -> None:
        self._driver = driver
        self._clock = clock
        self._memory_bytes = memory_bytes
        self._changed = changed
        self._instances: dict[InstanceId, _Instance] = {}
        self._troubles: dict[Slot, Trouble] = {}
        self._tasks = asyncio.TaskGroup()
        self._balancing = asyncio.Lock()
        self._starts = asyncio.Semaphore(parallel_starts)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stops all instances, all at the same time, and waits for them."""
        self.stop(list(self._instances))
        await self._tasks.__aexit__(None, None, None)

    def observed(self) -> Observed:
        instances = (ObservedInstance(i.id, i.slot, i.phase, i.socket_path) for i in self._instances.values())
        return Observed(tuple(instances), tuple(self._troubles.values()))

    def snapshot(self) -> tuple[InstanceSnapshot, ...]:
        return tuple(
            InstanceSnapshot(i.id, i.slot, i.phase, i.memory_bytes, i.socket_path, i.running.pid if i.running else None)
            for i in self._instances.values()
        )

    def ready_counts(self) -> Mapping[Slot, int]:
        return Counter(instance.slot for instance in self._instances.values() if instance.phase is Phase.READY)

    def start(self, starts: Iterable[Start]) -> None:
        new = [_Instance(InstanceId(f"i-{secrets.token_hex(6)}"), start.slot, start.revision) for start in starts]
        self._instances |= {instance.id: instance for instance in new}  # all of them first: each counts in every share
        for instance in new:
            instance.life = self._tasks.create_task(self._live(instance))

    def stop(self, ids: Iterable[InstanceId]) -> None:
        for instance in [self._instances[i] for i in ids if i in self._instances]:
            was, instance.phase = instance.phase, Phase.STOPPING
            if was is Phase.READY:
                self._tasks.create_task(self._end(instance))
            elif was is Phase.STARTING and instance.life is not None:
                instance.life.cancel()

    def notice_dead(self) -> None:
        """Ends what the driver knows to be dead, though it has not told us."""
        for instance in self._instances.values():
            if instance.phase is Phase.READY and not self._driver.is_alive(instance.id) and instance.life is not None:
                self._note_death(instance)
                instance.life.cancel()

    def forget_troubles(self, slots: Iterable[Slot]) -> None:
        """Keep only what is known of these slots: the others are no longer wanted."""
        wanted = set(slots)
        self._troubles = {slot: trouble for slot, trouble in self._troubles.items() if slot in wanted}

    async def _live(self, instance: "_Instance") -> None:
        """An instance's whole life, from its start until it has gone. Whatever happens, its share goes back to the others."""
        try:
            await self._balance()
            async with self._starts:  # fifty at once would take the cores from each other and from the callers
                instance.memory_bytes = self._share_bytes
                name = f"{instance.slot.endpoint}/{instance.slot.variant}"
                instance.running = await self._driver.start(InstanceSpec(instance.id, name, instance.memory_bytes))
            await self._serve(instance)
        except Exception as error:  # the worker's main: an instance must not take the fleet with it
            if not isinstance(error, FlatshareError | OSError):
                log.exception("instance_failed_unexpectedly", instance=instance.id)
            if instance.ready_s is None:
                self._note_trouble(instance, start_failure=str(error) or type(error).__name__)
        finally:
            del self._instances[instance.id]
            self._changed()
            self._tasks.create_task(self._balance())

    async def _serve(self, instance: "_Instance") -> None:
        instance.ready_s = self._clock.monotonic_s()
        instance.phase = Phase.READY
        log.info("instance_ready", instance=instance.id, endpoint=instance.slot.endpoint, variant=instance.slot.variant)
        try:
            await self._balance()
            self._changed()
            await self._driver.exited(instance.id)
            if instance.phase is Phase.READY:
                self._note_death(instance)
        finally:
            await self._driver.stop(instance.id)  # tidies up after the dead

    async def _end(self, instance: "_Instance") -> None:
        try:
            await self._driver.stop(instance.id)
        except (FlatshareError, OSError):
            log.exception("instance_stop_failed", instance=instance.id)
            instance.phase = Phase.READY  # still unwanted, hence stopped again by the next pass

    async def _balance(self) -> None:
        """Give every ready instance its share. Before a start this takes from the others, after an end it gives to them."""
        async with self._balancing:
            share_bytes = self._share_bytes
            unequal = [i for i in self._instances.values() if i.phase is Phase.READY and i.memory_bytes != share_bytes]
            await asyncio.gather(*(self._set_memory(instance, share_bytes) for instance in unequal))

    async def _set_memory(self, instance: "_Instance", memory_bytes: int) -> None:
        try:
            await self._driver.set_memory(instance.id, memory_bytes)
        except (FlatshareError, OSError) as error:  # TimeoutError is an OSError; a dead instance is noticed elsewhere
            log.warning("instance_memory_not_set", instance=instance.id, memory_bytes=memory_bytes, reason=str(error))
        else:
            instance.memory_bytes = memory_bytes

    @property
    def _share_bytes(self) -> int:
        return self._memory_bytes // max(1, len(self._instances))

    def _note_death(self, instance: "_Instance") -> None:
        """Out of the routes from now on, and no longer counted."""
        instance.phase = Phase.STOPPING
        self._note_trouble(instance, start_failure=None)
        self._changed()

    def _note_trouble(self, instance: "_Instance", *, start_failure: str | None) -> None:
        now_s = self._clock.monotonic_s()
        lived_s = 0.0 if instance.ready_s is None else now_s - instance.ready_s
        log.warning(
            "instance_lost",
            instance=instance.id,
            endpoint=instance.slot.endpoint,
            lived_s=lived_s,
            reason=start_failure or "it died",
        )
        self._troubles[instance.slot] = trouble_after(
            self._troubles.get(instance.slot),
            slot=instance.slot,
            revision=instance.revision,
            lived_s=lived_s,
            now_s=now_s,
            start_failure=start_failure,
        )


@dataclass(slots=True)
class _Instance:
    id: InstanceId
    slot: Slot
    revision: int
    phase: Phase = Phase.STARTING
    memory_bytes: int = 0
    running: RunningInstance | None = None
    ready_s: float | None = None
    life: asyncio.Task[None] | None = None

    @property
    def socket_path(self) -> str:
        return self.running.socket_path if self.running else ""
