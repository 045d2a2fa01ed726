"""Answers that come in parts, through real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.wire.http import Reply, Request
from tests.parts import Parts

GET = b"GET / HTTP/1.1\r\n\r\n"


@dataclass
class Talk:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@asynccontextmanager
async def talking(parts: Parts, *, send_s: float = 60.0) -> AsyncIterator[Talk]:
    """A caller of a server that answers everything with these parts, and afterwards with a plain reply."""
    replies = [Reply(200, content_type=b"text/x", parts=parts)]

    async def handle(_: Request) -> Reply:
        return replies.pop() if replies else Reply(200, b"plain")

    server = HandlerServer(handle, Bounds(max_body_bytes=1000, send_s=send_s), drain_s=0.1)
    port = await server.listen_on_port("127.0.0.1", 0)
    running = asyncio.create_task(server.run())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(30):
            yield Talk(reader, writer)
    finally:
        writer.close()
        server.stop()
        await running


async def test_parts_are_chunks_and_the_connection_serves_the_next_request() -> None:
    parts = Parts(b"one", b"", b"three")
    async with talking(parts) as talk:
        talk.writer.write(GET + GET)
        head = await talk.reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert b"content-length" not in head
        assert b"content-type: text/x" in head
        assert await talk.reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
        assert b"content-length: 5" in await talk.reader.readuntil(b"\r\n\r\n")
        assert parts.is_closed.is_set()


async def test_each_part_is_sent_when_it_comes() -> None:
    gate = asyncio.Event()
    async with talking(Parts(b"one", gate=gate)) as talk:
        talk.writer.write(GET)
        await talk.reader.readuntil(b"one\r\n")  # although the rest has not been made
        gate.set()
        await talk.reader.readuntil(b"0\r\n\r\n")


async def test_before_http_1_1_the_body_ends_with_the_connection() -> None:
    async with talking(Parts(b"one", b"two")) as talk:
        talk.writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await talk.reader.read()).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == b"onetwo"


async def test_a_body_that_breaks_has_no_last_chunk() -> None:
    parts = Parts(b"one", breaks=True)
    async with talking(parts) as talk:
        talk.writer.write(GET)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await talk.reader.readuntil(b"0\r\n\r\n")
        await parts.is_closed.wait()


async def test_a_caller_who_leaves_ends_the_parts() -> None:
    parts = Parts(b"one", gate=asyncio.Event())
    async with talking(parts) as talk:
        talk.writer.write(GET)
        await talk.reader.readuntil(b"one")
        talk.writer.transport.abort()
        await parts.is_closed.wait()


async def test_a_caller_who_stops_reading_is_cut_off_and_no_more_is_made_meanwhile() -> None:
    parts = Parts(bytes(100_000), again=1000)
    async with talking(parts, send_s=0.5) as talk:
        talk.writer.write(GET)
        await parts.is_closed.wait()
        assert parts.given < 1000


async def test_a_question_for_the_head_gets_no_parts() -> None:
    parts = Parts(b"one")
    async with talking(parts) as talk:
        talk.writer.write(b"HEAD / HTTP/1.1\r\n\r\n")
        assert b"one" not in await talk.reader.read()
        assert parts.is_closed.is_set()
        assert parts.given == 0
