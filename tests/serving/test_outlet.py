"""Answers that a thread sends itself, through real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from flatshare.serving.connection import Bounds
from flatshare.serving.outlet import SocketOutlet
from flatshare.serving.server import HandlerServer
from flatshare.wire.http import Handler, Reply, Request

LARGE = bytes(range(256)) * 40_000  # more than a socket takes at once
KEPT = b"POST /%b HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


class House:
    """A server whose answers are sent by threads where they may; `early` tells of which requests they were."""

    def __init__(self) -> None:
        self.early: list[str] = []
        self.is_sent = asyncio.Event()
        self.may_return = asyncio.Event()
        self.may_return.set()
        self.port = 0

    async def handle(self, request: Request) -> Reply:
        reply = Reply(200, LARGE if request.path == "/large" else request.path.encode(), b"text/plain")
        if request.outlet is not None:
            self.early.append(request.path)
            await asyncio.to_thread(request.outlet.send, reply)
            self.is_sent.set()
        await self.may_return.wait()
        return reply


@asynccontextmanager
async def house(*, has_outlets: bool = True, handle: Handler | None = None) -> AsyncIterator[House]:
    built = House()
    server = HandlerServer(handle or built.handle, Bounds(max_body_bytes=1000, has_outlets=has_outlets), drain_s=1.0)
    built.port = await server.listen_on_port("127.0.0.1", 0)
    running = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(30):
            yield built
    finally:
        built.may_return.set()
        server.stop()
        await running


async def exchange(port: int, message: bytes) -> bytes:
    """All that comes until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message)
    answer = await reader.read()
    writer.close()
    return answer


async def test_an_answer_is_there_before_the_handler_returns() -> None:
    async with house() as built:
        built.may_return.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", built.port)
        writer.write(KEPT % b"one")
        assert (await reader.readuntil(b"/one")).endswith(b"content-length: 4\r\ncontent-type: text/plain\r\n\r\n/one")
        built.may_return.set()
        writer.write(KEPT % b"two")  # and the connection serves the next one
        await reader.readuntil(b"/two")
        assert built.early[0] == "/one"
        writer.close()


@pytest.mark.parametrize("path", [b"small", b"large"])
async def test_bytes_are_those_that_the_loop_would_have_written(path: bytes) -> None:
    last = b"POST /%b HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % b"end"
    async with house() as fast, house(has_outlets=False) as plain:
        assert await exchange(fast.port, KEPT % path + last) == await exchange(plain.port, KEPT % path + last)
        assert fast.early == [f"/{path.decode()}"]
        assert plain.early == []


async def test_what_the_socket_did_not_take_follows_while_a_slow_reader_reads() -> None:
    async with house() as built:
        reader, writer = await asyncio.open_connection("127.0.0.1", built.port, limit=1024)
        writer.write(KEPT % b"large")
        await built.is_sent.wait()  # as much as fitted
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(LARGE)) == LARGE
        writer.close()


async def test_nothing_overtakes_an_answer_that_is_still_being_written() -> None:
    async with house() as built:
        answers = await exchange(built.port, KEPT % b"large" + KEPT % b"two" + b"POST /three HTTP/1.1\r\nconnection: close\r\n\r\n")
        heads = [answers.index(body) for body in (LARGE, b"/two", b"/three")]
        assert heads == sorted(heads)
        assert built.early == ["/large"]


@pytest.mark.parametrize("request_line", [b"HEAD /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nConnection: close\r\n", b"POST /x HTTP/1.0\r\n"])
async def test_who_hangs_up_or_wants_no_body_is_answered_by_the_loop(request_line: bytes) -> None:
    async with house() as built:
        if request_line.startswith(b"HEAD"):
            reader, writer = await asyncio.open_connection("127.0.0.1", built.port)
            writer.write(request_line + b"\r\n")
            assert b"content-length: 2" in await reader.readuntil(b"\r\n\r\n")
            writer.close()
        else:
            assert b"connection: close" in await exchange(built.port, request_line + b"\r\n")
        assert built.early == []


async def test_what_a_thread_sent_is_the_only_answer_even_if_the_handler_then_returns_another() -> None:
    async def handle(request: Request) -> Reply:
        if request.outlet is not None:
            await asyncio.to_thread(request.outlet.send, Reply(200, b"sent", b"text/plain"))
        return Reply(500, b"what went wrong afterwards", b"text/plain")

    async with house(handle=handle) as built:
        answers = await exchange(built.port, KEPT % b"one" + b"POST /two HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert answers.count(b"HTTP/1.1 ") == 2
        assert answers.startswith(b"HTTP/1.1 200 OK")
        assert answers.endswith(b"what went wrong afterwards")


async def test_a_caller_who_left_costs_nothing() -> None:
    async with house() as built:
        _, writer = await asyncio.open_connection("127.0.0.1", built.port)
        writer.write(KEPT % b"large")
        await built.is_sent.wait()
        writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", built.port)
        writer.write(KEPT % b"next")
        await reader.readuntil(b"/next")
        writer.close()


def test_an_outlet_holds_a_descriptor_of_its_own_and_sends_nothing_once_closed() -> None:
    near, far = socket.socketpair()
    with far:
        near.setblocking(False)
        outlet = SocketOutlet(near.fileno())
        near.close()  # its number may now be another connection's
        assert outlet.send(b"here") == 4
        assert far.recv(10) == b"here"
        outlet.close()
        outlet.close()
        assert outlet.send(b"late") == 0
        assert far.recv(10) == b""
