"""The gateway's road to an instance: HTTP/1.1 over a Unix socket, kept alive, one request a connection at a time.

httptools parses; what stands here is only the pool. A general client costs 0.25 ms of CPU per call on the machine where this one
costs 0.05 (docs/decisions/0003-lean-upstream.md), and the gateway pays it for every request.
"""

import asyncio
from collections.abc import Iterable
from typing import cast

import httptools

from flatshare.client.streaming import Streamed, StreamedBody
from flatshare.core.errors import InstanceGone
from flatshare.wire.http import Reply

Headers = Iterable[tuple[bytes, bytes]]


class InstanceClient:
    """A pool of connections to one instance. Made, used and closed on one event loop."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._is_retired = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        timeout_s: float = 60.0,
        streamed: Streamed | None = None,
    ) -> Reply:
        """One exchange. Raises InstanceGone if the instance cannot be reached or hangs up, TimeoutError past `timeout_s`.

        An answer of status 200 that comes in chunks, and of whose content type `streamed` says so, is handed over in parts.
        """
        message = _render_head(method, path, headers, len(body)) + body
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            connection = self._idle_connection()
            is_reused = connection is not None
            connection = connection or await self._connect()
            self._busy.add(connection)
            is_kept = False
            try:
                reply = await connection.exchange(message, deadline_s, streamed)
                if reply.parts is not None:
                    reply.parts, is_kept = self._kept(connection, timeout_s), True
                return reply
            except InstanceGone:
                # A kept-alive connection may have been closed while it lay idle: nothing of the request was read then.
                if not is_reused or connection.has_answer_begun:
                    raise
            finally:
                if not is_kept:
                    self._give_back(connection)

    def retire(self) -> None:
        """No more requests will come: let go of what is idle now, and of the rest when it has been answered."""
        self._is_retired = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def close(self) -> None:
        """Cut off everything."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    def _idle_connection(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(_Connection, self.socket_path)
        except OSError as error:
            raise InstanceGone(f"the instance behind {self.socket_path} cannot be reached: {error}") from error
        return connection

    def _kept(self, connection: "_Connection", patience_s: float) -> StreamedBody:
        """The rest of the answer; the connection is given back when it is closed."""
        body = connection.body
        assert body is not None, "an answer in parts without a body. This is a bug."
        body.take_over(patience_s, lambda: self._give_back(connection))
        return body

    def _give_back(self, connection: "_Connection") -> None:
        """An idle connection serves the next request, one in mid-answer is of no more use."""
        self._busy.discard(connection)
        if connection.is_open and connection.is_idle and not self._is_retired:
            self._idle.append(connection)
        else:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection: at most one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._deadline_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._streamed: Streamed | None = None
        self.body: StreamedBody | None = None
        self.has_answer_begun = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_idle(self) -> bool:
        return self._waiting is None and (self.body is None or self.body.is_complete)

    def exchange(self, message: bytes, deadline_s: float, streamed: Streamed | None = None) -> asyncio.Future[Reply]:
        """To be awaited."""
        assert self._transport is not None, "used before it was connected. This is a bug."
        assert self._waiting is None, "two exchanges on one connection. This is a bug."
        self._headers, self._body, self.has_answer_begun = [], [], False
        self._streamed, self.body = streamed, None
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        self._deadline_s = deadline_s
        if self._alarm is None or self._alarm.when() > deadline_s:
            self._set_alarm(loop)
        self._transport.write(message)
        return waiting

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour, not by class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the instance answered something that is not HTTP: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        if self._alarm is not None:
            self._alarm.cancel()
        self._fail("the instance closed the connection before it had answered")

    # What httptools calls.

    def on_message_begin(self) -> None:
        self.has_answer_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the answer is handed over in parts."""
        if self._streamed is None or self._waiting is None or self._waiting.done() or self._parser.get_status_code() != 200:
            return
        headers = dict(self._headers)
        if headers.get(b"transfer-encoding") == b"chunked" and self._streamed(headers.get(b"content-type", b"")) and self._transport:
            self.body = StreamedBody(self._transport)
            reply = _as_reply(200, self._headers, b"")
            reply.parts = self.body
            waiting, self._waiting = self._waiting, None
            waiting.set_result(reply)

    def on_body(self, body: bytes) -> None:
        if self.body is not None:
            self.body.push(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.body is not None:
            self.body.complete()
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(_as_reply(self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        """One for many exchanges: it looks at the deadline of the one under way only when it goes off."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(self._deadline_s, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        if self._waiting is None or self._waiting.done():
            return
        if loop.time() < self._deadline_s:
            self._set_alarm(loop)
        else:
            self._waiting.set_exception(TimeoutError("the instance did not answer in time"))

    def _fail(self, sentence: str) -> None:
        if self.body is not None:
            self.body.fail(sentence)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(InstanceGone(sentence))


def _render_head(method: str, path: str, headers: Headers, body_bytes: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1\r\nhost: instance\r\ncontent-length: {body_bytes}\r\n".encode()]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    return b"".join(lines) + b"\r\n"


def _as_reply(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Reply:
    reply = Reply(status, body)
    for name, value in headers:
        if name == b"content-type":
            reply.content_type = value
        elif name not in {b"content-length", b"date", b"server", b"connection", b"transfer-encoding"}:
            reply.headers.append((name, value))
    return reply
