"""The door, through real sockets."""

import asyncio
import contextlib
import ssl
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, Most
from flatshare.wire.http import TOO_LARGE, Reply, Request


class _Reply(Reply):
    """One that can be watched."""


@dataclass
class House:
    """A server whose handler notes what it is asked, and waits at a gate if it is told to."""

    requests: list[Request] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    server: HandlerServer | None = None
    last_reply: Callable[[], Reply | None] = lambda: None

    async def handle(self, request: Request) -> Reply:
        self.requests.append(request)
        self.arrived.set()
        if request.path == "/wait":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.path == "/bug":
            raise RuntimeError("a bug")
        if request.path == "/large":
            return Reply(200, bytes(50_000_000))
        reply = _Reply(200, request.body or b"nothing", b"text/plain", [(b"x-path", request.path.encode())])
        self.last_reply = weakref.ref(reply)
        return reply


@asynccontextmanager
async def house(
    bounds: Bounds | None = None, drain_s: float = 5.0, most: Most | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[House]:
    built = House()
    built.server = HandlerServer(built.handle, bounds or Bounds(max_body_bytes=1000), drain_s=drain_s, most=most)
    built.port = await built.server.listen_on_port("127.0.0.1", 0, tls)
    running = asyncio.create_task(built.server.run())
    try:
        yield built
    finally:
        built.gate.set()
        built.server.stop()
        await running


class Caller:
    """Bytes out, bytes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(status.split()[1]), headers, body

    async def end(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()


@asynccontextmanager
async def caller(where: House) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", where.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with house() as built, caller(built) as c:
        for body in (b"one", b"two"):
            c.writer.write(b"POST /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n" + body)
            assert (await c.answer())[::2] == (200, body)
        assert [(r.method, r.path, r.query) for r in built.requests] == [("POST", "/a b", b"x=1")] * 2


async def test_an_idle_connection_keeps_nothing_of_its_last_answer() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await c.answer()
        async with asyncio.timeout(10):
            while built.last_reply() is not None:  # noqa: ASYNC110  # the answer goes out before its task has come to rest
                await asyncio.sleep(0)


async def test_an_idle_connection_keeps_nothing_of_its_last_request() -> None:
    async with house(Bounds(max_body_bytes=8_000_000)) as built, caller(built) as c:
        tracemalloc.start()
        try:
            c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000))
            assert (await c.answer())[2] == bytes(5_000_000)
            built.requests.clear()
            async with asyncio.timeout(10):
                while tracemalloc.get_traced_memory()[0] > 1_000_000:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0)
        finally:
            tracemalloc.stop()


async def test_a_caller_who_answers_at_once_is_never_forgotten() -> None:
    """The next request may arrive in the very turn of the loop in which the last answer was written."""
    async with house() as built:

        async def talk() -> None:
            async with caller(built) as c:
                for _ in range(300):
                    c.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                    await c.answer()

        await asyncio.gather(*(talk() for _ in range(8)))
        assert len(built.requests) == 8 * 300


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(20)))
        assert [(await c.answer())[1]["x-path"] for _ in range(20)] == [f"/{n}" for n in range(20)]
        c.writer.write(b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await c.answer())[1]["x-path"] == "/after"


async def test_a_body_may_come_in_chunks_and_byte_by_byte() -> None:
    message = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with house() as built, caller(built) as c:
        for index in range(len(message)):
            c.writer.write(message[index : index + 1])
            await c.writer.drain()
        assert (await c.answer())[2] == b"abcde"


async def test_a_body_beyond_the_limit_reaches_the_handler_as_a_mark() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nX-Flatshare-Too-Large: 0\r\nContent-Length: 1001\r\n\r\n" + bytes(1001))
        assert (await c.answer())[2] == b"nothing"
        assert built.requests[0].headers[TOO_LARGE] == b"1"
        c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nX-Flatshare-Too-Large: 1\r\nContent-Length: 2\r\n\r\nok")
        assert (await c.answer())[2] == b"ok"
        assert TOO_LARGE not in built.requests[1].headers, "a caller cannot set the mark"


async def test_a_body_far_beyond_the_limit_is_cut_off() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n" + bytes(5000))
        assert (await c.answer())[0] == 413
        assert await c.end() == b""
        assert built.requests == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200),
        (b"GET /" + b"u" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(129)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 129 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
async def test_what_cannot_go_on_is_answered_and_the_connection_ends(sent: bytes, status: int) -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(sent)
        answered, headers, _ = await c.answer()
        assert answered == status
        assert answered == 200 or headers["x-amzn-requestid"]
        assert await c.end() == b""


async def test_head_has_no_body_and_expect_is_continued() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await c.answer())[0] == 100
        c.writer.write(b"ok")
        assert (await c.answer())[2] == b"ok"
        c.writer.write(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head = await c.end()
        assert b"content-length: 7" in head
        assert head.endswith(b"\r\n\r\n")


async def test_a_caller_who_hangs_up_frees_its_place() -> None:
    async with house() as built:
        async with caller(built) as c:
            c.writer.write(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
            await built.arrived.wait()
        async with asyncio.timeout(5):
            await built.cancelled.wait()


async def test_a_handler_with_a_bug_costs_its_caller_the_connection_and_nobody_else() -> None:
    async with house() as built:
        async with caller(built) as c:
            c.writer.write(b"GET /bug HTTP/1.1\r\nHost: h\r\n\r\n")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await c.answer()
        async with caller(built) as c:
            c.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await c.answer())[0] == 200


@pytest.mark.parametrize(
    ("sent", "bounds", "said"),
    [
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Le", Bounds(max_body_bytes=9, receive_s=0.0), b"408"),
        (b"", Bounds(max_body_bytes=9, idle_s=0.0), b""),
        (b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n", Bounds(max_body_bytes=9, send_s=0.0, idle_s=60.0), b"200"),
    ],
    ids=["slow to send", "idle", "slow to read"],
)
@pytest.mark.slow
async def test_a_caller_who_takes_too_long_is_cut_off(sent: bytes, bounds: Bounds, said: bytes) -> None:
    async with house(bounds) as built, caller(built) as c:
        c.writer.write(sent)
        received = b""
        async with asyncio.timeout(10):
            if said == b"200":
                await asyncio.sleep(1.5)  # not reading is the point: the sweep comes every second
            try:
                received = await c.reader.read()
            except ConnectionResetError:
                received = b"HTTP/1.1 200"
        assert said in received[:20]
        assert len(received) < 50_000_000


async def test_stopping_answers_what_is_under_way_and_accepts_no_more() -> None:
    async with house() as built, caller(built) as busy, caller(built) as idle:
        busy.writer.write(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
        await built.arrived.wait()
        assert built.server is not None
        built.server.stop()
        assert await idle.end() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", built.port)
        built.gate.set()
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"]) == (200, "close")


async def test_draining_ends_with_its_time() -> None:
    async with house(drain_s=0.1) as built, caller(built) as c:
        c.writer.write(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
        await built.arrived.wait()
        assert built.server is not None
        built.server.stop()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await c.answer()
        assert built.cancelled.is_set()


async def test_beyond_the_most_connections_newcomers_are_hung_up_on() -> None:
    built = House()
    server = HandlerServer(built.handle, Bounds(max_body_bytes=9), drain_s=1.0, most=Most(connections=1))
    built.port = await server.listen_on_port("127.0.0.1", 0)
    running = asyncio.create_task(server.run())
    async with caller(built) as first:
        first.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await first.answer())[0] == 200
        async with caller(built) as second:
            with contextlib.suppress(ConnectionResetError):
                assert await second.end() == b""
    server.stop()
    await running


async def test_a_request_says_where_it_came_from_and_keeps_its_path_as_it_was_sent() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"GET /a%2Fb%20c?x=%20 HTTP/1.1\r\nHost: h\r\n\r\n")
        await c.answer()
        [request] = built.requests
        assert (request.peer, request.raw_path, request.path, request.query) == ("127.0.0.1", b"/a%2Fb%20c", "/a/b c", b"x=%20")


async def test_one_address_does_not_take_all_connections() -> None:
    async with house(most=Most(connections=100, connections_per_peer=2)) as built, caller(built) as first:
        async with caller(built) as second:
            for c in (first, second):
                c.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                assert (await c.answer())[0] == 200
            async with caller(built) as third:
                with contextlib.suppress(ConnectionResetError):
                    assert await third.end() == b""
        first.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await first.answer())[0] == 200
        await _until_a_newcomer_is_served(built)


async def _until_a_newcomer_is_served(built: House) -> None:
    """A place is free once the server has heard that its holder left."""
    async with asyncio.timeout(10):
        while True:
            async with caller(built) as c:
                c.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
                    assert (await c.answer())[0] == 200
                    return


async def test_all_bodies_together_are_bounded_and_given_back() -> None:
    head = b"POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 600\r\n\r\n"
    async with house(most=Most(body_bytes=1000)) as built, caller(built) as first:
        first.writer.write(head + bytes(600))
        await built.arrived.wait()
        async with caller(built) as second:
            second.writer.write(head + bytes(600))
            assert (await second.answer())[0] == 503
            assert await second.end() == b""
        built.gate.set()
        assert (await first.answer())[0] == 200
        for _ in range(3):
            first.writer.write(head + bytes(600))
            assert (await first.answer())[0] == 200
        assert len(built.requests) == 4, "what was refused half read was never handled"


@pytest.mark.parametrize("length", [600, 1500], ids=["half sent", "too large to keep"])
async def test_the_bytes_of_a_caller_who_leaves_are_given_back(length: int) -> None:
    async with house(most=Most(body_bytes=1000)) as built:
        for _ in range(5):
            async with caller(built) as c:
                c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length + bytes(599))
                await c.writer.drain()
                c.writer.write_eof()
                with contextlib.suppress(ConnectionResetError):
                    await c.end()
        async with caller(built) as c:
            c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n" + bytes(900))
            assert (await c.answer())[0] == 200


async def test_whoever_sends_far_ahead_of_the_answers_is_cut_off() -> None:
    async with house() as built, caller(built) as c:
        c.writer.write(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 100)
        with contextlib.suppress(ConnectionResetError):
            assert await c.end() == b""
        async with asyncio.timeout(10):
            await built.cancelled.wait()
        assert len(built.requests) == 1


@pytest.mark.slow
async def test_a_request_that_drips_is_cut_off_in_time() -> None:
    """Slow loris: a byte now and then keeps a connection busy, not its time from running out."""
    async with house(Bounds(max_body_bytes=9, receive_s=0.5)) as built, caller(built) as c:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"y" * 10_000:
                    c.writer.write(bytes([byte]))
                    await c.writer.drain()
                    await asyncio.sleep(0.05)  # dripping is the point

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionResetError):  # what still drips in when the connection is closed may overtake the answer
            assert (await c.answer())[0] == 408
            assert await c.end() == b""
        dripping.cancel()
        assert built.requests == []
