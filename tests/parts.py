"""A body in parts that a test makes and watches."""

import asyncio

from flatshare.core.errors import InstanceGone


class Parts:
    """Gives what it is told to, then waits at a gate if there is one, then ends or breaks."""

    def __init__(self, *parts: bytes, gate: asyncio.Event | None = None, breaks: bool = False, again: int = 1) -> None:
        self._parts = list(parts) * again
        self._gate = gate
        self._breaks = breaks
        self.given = 0
        self.is_closed = asyncio.Event()

    def __aiter__(self) -> "Parts":
        return self

    async def __anext__(self) -> bytes:
        if self.given < len(self._parts):
            self.given += 1
            return self._parts[self.given - 1]
        if self._gate is not None:
            await self._gate.wait()
        if self._breaks:
            raise InstanceGone("it broke")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed.set()
