"""Answers that come in parts, on their way through the gateway: held to account until they end, and wrapped into AWS's frames."""

from collections.abc import Callable

import orjson

from flatshare.core.errors import FlatshareError
from flatshare.wire import eventstream, generation
from flatshare.wire.http import Parts, Reply

_TYPES = (generation.EVENTS.content_type, generation.LINES.content_type)
_ERROR_LINE = b'{"error":'


def is_streamed(content_type: bytes) -> bool:
    """What goes on to the caller as it comes; other chunked answers are collected first."""
    return content_type.partition(b";")[0].strip() in _TYPES


class HeldParts:
    """Parts of which somebody wants to know when they have ended."""

    def __init__(self, parts: Parts, ended: Callable[[], None]) -> None:
        self._parts = parts
        self._ended: Callable[[], None] | None = ended

    def __aiter__(self) -> "HeldParts":
        return self

    async def __anext__(self) -> bytes:
        return await self._parts.__anext__()

    async def aclose(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            try:
                await self._parts.aclose()
            finally:
                ended()


class WholeLines:
    """Parts that end where a line ends, but for the last."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._held = b""
        self._has_ended = False

    def __aiter__(self) -> "WholeLines":
        return self

    async def __anext__(self) -> bytes:
        lines = b""
        while not lines:
            if self._has_ended:
                raise StopAsyncIteration
            try:
                self._held += await self._parts.__anext__()
                end = self._held.rfind(b"\n") + 1
            except StopAsyncIteration:
                self._has_ended, end = True, len(self._held)
            lines, self._held = self._held[:end], self._held[end:]
        return lines


class RewrittenParts:
    """Whole lines of a stream of ours in a client's form. An end before the end becomes a last part that says so.

    `rewrite` says whether what it made is the last part, whatever may come; `broken` makes one of why the stream broke.
    """

    def __init__(self, parts: Parts, rewrite: Callable[[bytes], tuple[bytes, bool]], broken: Callable[[FlatshareError], bytes]) -> None:
        self._parts = parts
        self._lines = WholeLines(parts)
        self._rewrite = rewrite
        self._broken = broken
        self._has_ended = False

    def __aiter__(self) -> "RewrittenParts":
        return self

    async def __anext__(self) -> bytes:
        if self._has_ended:
            raise StopAsyncIteration
        try:
            lines = await self._lines.__anext__()
        except FlatshareError as error:
            self._has_ended = True
            return self._broken(error)
        part, self._has_ended = self._rewrite(lines)
        return part

    async def aclose(self) -> None:
        await self._parts.aclose()


def framed(reply: Reply) -> Reply:
    """A good answer as InvokeEndpointWithResponseStream gives it; one that does not come in parts is one frame."""
    if reply.status >= 300:
        return reply
    reply.headers.append((b"x-amzn-sagemaker-content-type", reply.content_type))
    reply.content_type = eventstream.CONTENT_TYPE
    if reply.parts is not None:
        reply.parts = RewrittenParts(reply.parts, _frame, lambda error: eventstream.internal_stream_failure(str(error)))
    else:
        reply.body = eventstream.payload_part(reply.body)
    return reply


def _frame(lines: bytes) -> tuple[bytes, bool]:
    """An event-stream frame. Our own instance's last line, if it failed, becomes the exception that AWS's clients know."""
    if not lines.startswith(_ERROR_LINE):
        return eventstream.payload_part(lines), False
    fields = orjson.loads(lines)
    return eventstream.model_stream_error(str(fields.get("error")), str(fields.get("type"))), True
