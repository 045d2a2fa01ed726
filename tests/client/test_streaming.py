"""An instance's answer in parts, from a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flatshare.client.instance import InstanceClient
from flatshare.core.errors import InstanceGone
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.wire.http import Reply, Request
from tests.parts import Parts

STREAM = b"text/event-stream"


@asynccontextmanager
async def client_of(path: Path, *parts: Parts, content_type: bytes = STREAM) -> AsyncIterator[InstanceClient]:
    """A client of an instance that gives these bodies, one a request, and then a plain one."""
    left = list(parts)
    connections = set()

    async def handle(request: Request) -> Reply:
        connections.add(request.peer)
        return Reply(200, content_type=content_type, parts=left.pop(0)) if left else Reply(200, b"plain")

    server = HandlerServer(handle, Bounds(max_body_bytes=1000), drain_s=0.1)
    await server.listen_on_socket(str(path))
    running = asyncio.create_task(server.run())
    client = InstanceClient(str(path))
    try:
        async with asyncio.timeout(30):
            yield client
    finally:
        client.close()
        server.stop()
        await running


def is_stream(content_type: bytes) -> bool:
    return content_type == STREAM


async def test_parts_come_as_they_are_made(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with client_of(tmp_path / "s", Parts(b"one", gate=gate)) as client:
        reply = await client.request("POST", "/", streamed=is_stream)
        assert reply.parts is not None
        assert await anext(reply.parts) == b"one"
        gate.set()
        with pytest.raises(StopAsyncIteration):
            await anext(reply.parts)
        await reply.parts.aclose()
        assert (await client.request("POST", "/", streamed=is_stream)).body == b"plain"


async def test_whoever_does_not_ask_for_parts_gets_the_whole(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s", Parts(b"one", b"two")) as client:
        reply = await client.request("POST", "/")
        assert reply.parts is None
        assert reply.body == b"onetwo"


async def test_another_type_is_collected(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s", Parts(b"one", b"two"), content_type=b"text/plain") as client:
        assert (await client.request("POST", "/", streamed=is_stream)).body == b"onetwo"


async def test_closing_early_tells_the_instance(tmp_path: Path) -> None:
    parts = Parts(b"one", gate=asyncio.Event())
    async with client_of(tmp_path / "s", parts) as client:
        reply = await client.request("POST", "/", streamed=is_stream)
        assert reply.parts is not None
        await anext(reply.parts)
        await reply.parts.aclose()
        await reply.parts.aclose()
        await parts.is_closed.wait()


async def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s", Parts(b"one", breaks=True)) as client:
        reply = await client.request("POST", "/", streamed=is_stream)
        assert reply.parts is not None
        assert await anext(reply.parts) == b"one"
        with pytest.raises(InstanceGone):
            await anext(reply.parts)
        await reply.parts.aclose()


async def test_an_instance_that_falls_silent_is_an_error(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s", Parts(b"one", gate=asyncio.Event())) as client:
        reply = await client.request("POST", "/", timeout_s=0.2, streamed=is_stream)
        assert reply.parts is not None
        await anext(reply.parts)
        with pytest.raises(InstanceGone, match="said nothing for"):
            await anext(reply.parts)
        await reply.parts.aclose()


async def test_a_reader_who_is_slow_holds_the_instance_back(tmp_path: Path) -> None:
    parts = Parts(bytes(100_000), again=300)
    async with client_of(tmp_path / "s", parts) as client:
        reply = await client.request("POST", "/", streamed=is_stream)
        assert reply.parts is not None
        received = len(await anext(reply.parts))
        assert parts.given < 300, "everything was read at once"
        async for part in reply.parts:
            received += len(part)
        assert received == 30_000_000
        await reply.parts.aclose()
