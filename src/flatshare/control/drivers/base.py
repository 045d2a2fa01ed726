"""What a driver is: the one wrapper through which all starting and stopping of instances passes."""

from dataclasses import dataclass
from typing import Protocol

from flatshare.core.ids import InstanceId


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    id: InstanceId
    name: str
    """For people: `endpoint/variant`."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class RunningInstance:
    id: InstanceId
    socket_path: str
    pid: int


class Driver(Protocol):
    async def start(self, spec: InstanceSpec) -> RunningInstance:
        """Start an instance, wait until it answers. Raises InstanceGone; when cancelled, leaves nothing behind."""

    async def stop(self, instance_id: InstanceId) -> None:
        """Let the instance finish its work, end it, tidy up after it. Returns when it has gone. A dead one is no error."""

    async def set_memory(self, instance_id: InstanceId, memory_bytes: int) -> None:
        """Change the instance's share. Returns when it has complied; raises InstanceGone or TimeoutError if it does not."""

    async def exited(self, instance_id: InstanceId) -> None:
        """Wait until the instance has gone, for whatever reason."""

    def is_alive(self, instance_id: InstanceId) -> bool:
        """What `exited` may have missed: asked on every tick."""

    async def close(self) -> None:
        """End every instance, all at the same time."""
