"""One client's connection: requests parsed by httptools, handed on one at a time, each answered before the next is read.

Why not an ASGI server: every stage that a request passes is cold, since the engine has just streamed 40 MB of weights through the
caches, and costs in proportion to the code that it touches (docs/decisions/0004-own-doors.md). And what a caller can make large or
slow is bounded here: the number and size of headers, the size of bodies, one by one and all together, how many requests wait, the
time to send them, the time to read the answer.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import httptools

from flatshare.core.errors import FlatshareError
from flatshare.serving.outlet import SocketOutlet
from flatshare.telemetry.log import get_logger
from flatshare.wire.http import REQUEST_ID, TOO_LARGE, Handler, Parts, Reply, Request

log = get_logger("http")
_ONE_READ = 262_144  # what one read may bring along of the body, or of the next request
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one caller may take."""

    max_body_bytes: int
    max_header_bytes: int = 65_536
    max_headers: int = 128
    max_pipelined: int = 64
    """Requests that arrived before the one under way was answered."""
    receive_s: float = 30.0
    """From a request's first byte to its last."""
    send_s: float = 60.0
    """For the caller to read an answer."""
    idle_s: float = 75.0
    """Between two requests of a kept-alive connection."""
    has_outlets: bool = False
    """Whether threads may send answers themselves. For plain sockets and few callers: it takes a descriptor more for each."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A request that is complete, and whether its sender wants the connection kept."""

    request: Request
    is_kept: bool
    is_chunkable: bool
    """It speaks HTTP/1.1."""


class Registry(Protocol):
    """Who must know of open connections."""

    def opened(self, connection: "Connection") -> None: ...

    def closed(self, connection: "Connection") -> None: ...

    def can_hold(self, more_bytes: int) -> bool:
        """Whether all bodies together may grow by so much; counted if so, and to be given back with a negative number."""


class Connection(asyncio.Protocol):
    """States: idle → receiving → handling → (sending) → idle. `since_s` is when the present one began."""

    def __init__(self, handler: Handler, bounds: Bounds, registry: Registry) -> None:
        self._handler = handler
        self._bounds = bounds
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._arrived: deque[_Arrival] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._next: asyncio.Future[_Arrival] | None = None
        self._is_handling = False
        self._is_writable = asyncio.Event()
        self._is_writable.set()
        self._closes_after_reply = False
        self._is_receiving = False
        self._is_in_head = True
        self._head_bytes = 0
        self._is_paused = False
        self._held_bytes = 0
        self._outlet: SocketOutlet | None = None
        self._unsent: bytes | None = None
        self.peer = ""
        self.since_s = self._loop.time()
        self._begin()

    @property
    def is_busy(self) -> bool:
        return self._is_receiving or self._is_handling

    def close_when_idle(self) -> None:
        """Answer what is under way, then close."""
        self._closes_after_reply = True
        if not self.is_busy and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def enforce(self, now_s: float) -> None:
        """Hang up on a caller who takes too long to send, to read, or to come back."""
        waited_s = now_s - self.since_s
        if self._is_handling:
            if not self._is_writable.is_set() and waited_s > self._bounds.send_s:
                self.abort()
        elif self._is_receiving:
            if waited_s > self._bounds.receive_s:
                self._refuse(408, b"the request took too long to arrive")
        elif waited_s > self._bounds.idle_s and self._transport is not None:
            self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour, not by class
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else ""  # a Unix socket's callers have no address
        if self._bounds.has_outlets:
            with suppress(OSError):  # no descriptor is left: the loop answers
                self._outlet = SocketOutlet(transport.get_extra_info("socket").fileno())
        self._registry.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """A caller who goes away frees its place."""
        self._registry.closed(self)
        self._let_go(self._held_bytes)
        self._is_writable.set()
        if self._outlet is not None:
            self._outlet.close()
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._is_writable.clear()
        self.since_s = self._loop.time()

    def resume_writing(self) -> None:
        self._is_writable.set()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_in_head:  # httptools collects a header before it calls: count what it has been given
            self._head_bytes += len(data)
            if self._head_bytes > self._bounds.max_header_bytes + _ONE_READ:
                self._refuse(431, b"the headers are too large")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._closes_after_reply = True  # the upgrade is ignored, as a server may; the parser is of no more use
        except httptools.HttpParserError as error:
            self._refuse(400, b"not HTTP/1.1: " + str(error).encode())
        if self._arrived and not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()  # a pipelined request waits its turn, and its sender with it

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._begin()
        self._is_receiving = True
        if not self._is_handling:
            self.since_s = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > self._bounds.max_header_bytes:
            self._refuse(431, b"the path is too long")
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # trailers are not headers
        name = name.lower()
        self._header_bytes += len(name) + len(value)
        self._header_count += 1
        if self._header_bytes > self._bounds.max_header_bytes or self._header_count > self._bounds.max_headers:
            self._refuse(431, b"the headers are too large, or too many")
            raise _Refused
        self._headers[name] = self._headers[name] + b"," + value if name in self._headers else value

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        self._headers.pop(TOO_LARGE, None)
        is_next = not self._is_handling  # else the answer to the one before may be half out
        if is_next and self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= self._bounds.max_body_bytes:
            if not self._registry.can_hold(len(body)):
                self._refuse(503, b"the server holds as many bytes of requests as it may: call again later")
                raise _Refused
            self._held_bytes += len(body)
            self._body.append(body)
        elif self._body_bytes <= 4 * self._bounds.max_body_bytes:
            self._let_go(sum(map(len, self._body)))
            self._body.clear()  # go on reading, so that the caller hears the answer, but keep nothing
        else:
            self._refuse(413, b"the body is far beyond the limit")

    def on_message_complete(self) -> None:
        if self._body_bytes > self._bounds.max_body_bytes:
            self._headers[TOO_LARGE] = b"1"
        self._is_receiving = False
        self._is_in_head = True
        arrival = _Arrival(self._request(), self._parser.should_keep_alive(), self._parser.get_http_version() != "1.0")
        self._begin()  # what has gone into the request is the request's alone
        if self._is_handling:
            self._arrived.append(arrival)
            if len(self._arrived) > self._bounds.max_pipelined:
                self.abort()  # an answer in between would be taken for that to the first of them
            return
        self._is_handling = True
        if self._can_overtake(arrival):
            arrival.request.outlet = self
        if self._next is not None:
            self._next.set_result(arrival)
        else:
            self._answering = self._loop.create_task(self._answer(arrival))
            self._answering.add_done_callback(self._settle)

    # What the thread that has an answer calls.

    def send(self, reply: Reply) -> None:
        """See wire.http.Outlet. The loop writes nothing meanwhile: it waits for the handler."""
        assert self._outlet is not None, "a connection without an outlet was offered as one. This is a bug."
        message = _message(reply, closes=self._closes_after_reply)
        self._unsent = message[self._outlet.send(message) :]

    # One request.

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._header_bytes = 0
        self._header_count = 0
        self._body_bytes = 0

    def _request(self) -> Request:
        path, _, query = self._url.partition(b"?")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        decoded = unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("latin-1")
        return Request(self._parser.get_method().decode(), decoded, self._headers, body, query, path, self.peer)

    async def _answer(self, arrival: _Arrival) -> None:
        """Answer the requests of this connection in order, as they come. To make a task for each would touch more than to parse it."""
        while True:
            held_bytes = len(arrival.request.body)
            reply = await self._handler(arrival.request)
            self._let_go(held_bytes)
            closes = self._closes_after_reply or not arrival.is_kept
            if self._unsent is not None:
                self._write_rest()
            elif reply.parts is not None:
                closes = await self._write_parts(reply, reply.parts, arrival, closes=closes)
            else:
                self._write(reply, is_head=arrival.request.method == "HEAD", closes=closes)
            if reply.afterwards is not None:
                reply.afterwards()
            if not self._is_writable.is_set():
                await self._is_writable.wait()
            if closes and self._transport is not None:
                self._transport.close()
                return
            del arrival, reply  # an idle connection keeps nothing
            arrival = self._arrived.popleft() if self._arrived else await self._rest()

    def _can_overtake(self, arrival: _Arrival) -> bool:
        """Whether a thread may send the answer: only if nothing of an earlier one is left to be written."""
        if self._outlet is None or self._transport is None or not arrival.is_kept or arrival.request.method == "HEAD":
            return False
        return self._transport.get_write_buffer_size() == 0

    def _let_go(self, count: int) -> None:
        """Bytes of bodies that are no longer held."""
        self._held_bytes -= count
        self._registry.can_hold(-count)

    def _rest(self) -> "asyncio.Future[_Arrival]":
        """Back to idle, at once: whoever reads our answer may send the next request already. That one is the result."""
        self._is_handling = False
        self._next = self._loop.create_future()
        self.since_s = self._loop.time()
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()
        return self._next

    def _settle(self, done: asyncio.Task[None]) -> None:
        """A handler that failed to answer has a bug, and its caller must not wait for ever."""
        if not done.cancelled() and done.exception() is not None:
            log.error("handler_failed", exc_info=done.exception())
            self.abort()

    def _write(self, reply: Reply, *, is_head: bool, closes: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(_message(reply, closes=closes, is_head=is_head))

    def _write_rest(self) -> None:
        """What a thread has begun to send."""
        unsent, self._unsent = self._unsent, None
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unsent)

    async def _write_parts(self, reply: Reply, parts: Parts, arrival: _Arrival, *, closes: bool) -> bool:
        """Each part as it comes, no faster than the caller reads. Whether the connection must be closed after it."""
        try:
            if self._transport is None or arrival.request.method == "HEAD":
                self._write(reply, is_head=True, closes=True)
                return True
            closes = closes or not arrival.is_chunkable  # before HTTP/1.1, a body of unknown length ends with the connection
            self._transport.write(b"".join(_head(reply, b"transfer-encoding: chunked\r\n" if arrival.is_chunkable else b"", closes=closes)))
            async for part in parts:
                if part:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if arrival.is_chunkable else part)
                await self._is_writable.wait()
            self._transport.write(b"0\r\n\r\n" if arrival.is_chunkable else b"")
            return closes
        except FlatshareError as error:
            log.warning("stream_broke", reason=str(error))
            self.abort()  # without the last chunk, so that nobody takes a part for the whole
            return True
        finally:
            await parts.aclose()

    def _refuse(self, status: int, reason: bytes) -> None:
        """An answer below the level of any protocol, and the end of the connection."""
        if not self._is_handling:
            request_id = str(uuid4())
            log.debug("refused", status=status, reason=reason.decode("latin-1"), peer=self.peer, request_id=request_id)
            self._write(Reply(status, reason + b"\n", b"text/plain", [(REQUEST_ID, request_id.encode())]), is_head=False, closes=True)
        if self._transport is not None:
            self._transport.close()


def _message(reply: Reply, *, closes: bool, is_head: bool = False) -> bytes:
    lines = _head(reply, b"content-length: %d\r\n" % len(reply.body), closes=closes)
    if not is_head:
        lines.append(reply.body)
    return b"".join(lines)


def _head(reply: Reply, length: bytes, *, closes: bool) -> list[bytes]:
    """Up to the empty line, in pieces; `length` says how the body's end is known."""
    lines = [b"HTTP/1.1 %d %b\r\n%b" % (reply.status, _REASONS.get(reply.status, b"-"), length)]
    if reply.body or reply.parts is not None:
        lines.append(b"content-type: %b\r\n" % reply.content_type)
    lines += [b"%b: %b\r\n" % pair for pair in reply.headers]
    lines.append(b"connection: close\r\n\r\n" if closes else b"\r\n")
    return lines


class _Refused(Exception):
    """Ends the parsing, so that nothing half read is taken for a request; httptools passes it on as a parser error."""
