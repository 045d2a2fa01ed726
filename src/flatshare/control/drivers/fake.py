"""A driver whose instances are entries in a dict: for tests, ours and yours."""

import asyncio
from dataclasses import dataclass, field

from flatshare.control.drivers.base import InstanceSpec, RunningInstance
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import InstanceId


@dataclass(slots=True)
class FakeInstance:
    spec: InstanceSpec
    memory_bytes: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class FakeDriver:
    """Starts and stops at once, unless told otherwise by its switches."""

    def __init__(self) -> None:
        self.instances: dict[InstanceId, FakeInstance] = {}
        self.started: list[InstanceSpec] = []
        self.stopped: list[InstanceId] = []
        self.start_failure: str | None = None
        """While set, every start fails with this sentence."""
        self.starts_before_failure = 0
        """So many starts still succeed while `start_failure` is set."""
        self.may_start = asyncio.Event()
        """While clear, starts wait."""
        self.may_start.set()
        self.may_stop = asyncio.Event()
        """While clear, stops wait."""
        self.may_stop.set()

    def fail_from(self, number: int, sentence: str) -> None:
        """The starts from the `number`-th on fail."""
        self.starts_before_failure, self.start_failure = number - 1, sentence

    async def start(self, spec: InstanceSpec) -> RunningInstance:
        self.started.append(spec)
        await self.may_start.wait()
        if self.start_failure is not None:
            if self.starts_before_failure == 0:
                raise InstanceGone(self.start_failure)
            self.starts_before_failure -= 1
        self.instances[spec.id] = FakeInstance(spec, spec.memory_bytes)
        return RunningInstance(spec.id, f"/fake/{spec.id}.sock", pid=len(self.started))

    async def stop(self, instance_id: InstanceId) -> None:
        await self.may_stop.wait()
        if instance_id in self.instances:
            self.stopped.append(instance_id)
            self.kill(instance_id)

    def kill(self, instance_id: InstanceId) -> None:
        """The instance dies, as by SIGKILL."""
        instance = self.instances.pop(instance_id, None)
        if instance is not None:
            instance.gone.set()

    async def set_memory(self, instance_id: InstanceId, memory_bytes: int) -> None:
        if instance_id not in self.instances:
            raise InstanceGone(f"the instance {instance_id} has gone")
        self.instances[instance_id].memory_bytes = memory_bytes

    async def exited(self, instance_id: InstanceId) -> None:
        if instance_id in self.instances:
            await self.instances[instance_id].gone.wait()

    def is_alive(self, instance_id: InstanceId) -> bool:
        return instance_id in self.instances

    async def close(self) -> None:
        await asyncio.gather(*(self.stop(instance_id) for instance_id in list(self.instances)))
