"""An instance's answer while it comes: parts wait here until they are read, and the instance waits when too many do."""

import asyncio
from collections import deque
from collections.abc import Callable

from flatshare.core.errors import InstanceGone

Streamed = Callable[[bytes], bool]
"""Whether an answer of this content type is handed over in parts."""
_MOST_WAITING_BYTES = 262_144


class StreamedBody:
    """See the module. Filled by the connection, read by one task."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._patience_s = 60.0
        self._give_back: Callable[[], None] | None = None
        self.is_complete = False

    def take_over(self, patience_s: float, give_back: Callable[[], None]) -> None:
        """From now on it is read; `give_back` is called when it is closed."""
        self._patience_s = patience_s
        self._give_back = give_back

    # What the connection calls.

    def push(self, part: bytes) -> None:
        self._parts.append(part)
        self._waiting_bytes += len(part)
        if self._waiting_bytes > _MOST_WAITING_BYTES:
            self._transport.pause_reading()
        self._changed.set()

    def complete(self) -> None:
        self.is_complete = True
        self._changed.set()

    def fail(self, sentence: str) -> None:
        if not self.is_complete:
            self._failure = sentence
            self._changed.set()

    # What its reader calls.

    def __aiter__(self) -> "StreamedBody":
        return self

    async def __anext__(self) -> bytes:
        """Raises InstanceGone if the instance hangs up before the end, or says nothing for too long."""
        while not self._parts:
            if self.is_complete:
                raise StopAsyncIteration
            if self._failure is not None:
                raise InstanceGone(self._failure)
            self._changed.clear()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._changed.wait()
            except TimeoutError as error:
                raise InstanceGone(f"the instance said nothing for {self._patience_s:.0f} s in the middle of its answer") from error
        part = self._parts.popleft()
        self._waiting_bytes -= len(part)
        if self._waiting_bytes <= _MOST_WAITING_BYTES and not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()
        return part

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            if not self._transport.is_reading() and not self._transport.is_closing():
                self._transport.resume_reading()
            give_back()
