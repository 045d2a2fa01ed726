"""The gateway's road to an instance, against real sockets that behave and misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flatshare.client.instance import InstanceClient
from flatshare.core.errors import InstanceGone

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def client_of(peer: Peer, path: Path) -> AsyncIterator[InstanceClient]:
    server = await asyncio.start_unix_server(peer, path)
    client = InstanceClient(str(path))
    try:
        yield client
    finally:
        client.close()
        server.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes = b"ok") -> bool:
    """Read one request, answer it; False if there was none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    content = text + body
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-A: b\r\n\r\n%b" % (len(content), content))
    return True


async def test_a_connection_is_used_again(tmp_path: Path) -> None:
    connections = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await answer(reader, writer):
            pass
        writer.close()

    async with client_of(peer, tmp_path / "s") as client:
        for _ in range(5):
            reply = await client.request("POST", "/x", body=b"!", headers=[(b"content-type", b"text/plain")])
            assert (reply.status, reply.body, reply.headers) == (200, b"ok!", [(b"x-a", b"b")])
        await asyncio.gather(*(client.request("GET", "/x") for _ in range(3)))
    assert connections == 3


async def test_a_connection_that_was_closed_while_idle_is_replaced(tmp_path: Path) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        writer.close()  # without having said so

    async with client_of(peer, tmp_path / "s") as client:
        for _ in range(5):
            assert (await client.request("GET", "/x")).body == b"ok"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"SSH-2.0-OpenSSH\r\n"])
async def test_a_peer_that_hangs_up_in_mid_answer_is_gone(tmp_path: Path, said: bytes) -> None:
    calls = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with client_of(peer, tmp_path / "s") as client:
        with pytest.raises(InstanceGone):
            await client.request("GET", "/x")
    assert calls == 1, "a request that a fresh connection has read is not sent twice"


async def test_nobody_there_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InstanceGone, match="cannot be reached"):
        await InstanceClient(str(tmp_path / "nobody")).request("GET", "/x")


async def test_a_silent_peer_times_out_and_its_late_answer_reaches_nobody(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        while await answer(reader, writer, b"fresh"):
            pass
        writer.close()

    async with client_of(peer, tmp_path / "s") as client:
        with pytest.raises(TimeoutError):
            await client.request("GET", "/first", timeout_s=0.05)
        gate.set()
        reply = await client.request("GET", "/second", timeout_s=5)
        assert reply.body in {b"late", b"fresh"}, "a connection of its own: what it says first is its answer"


async def test_a_cancelled_request_takes_its_connection_along(tmp_path: Path) -> None:
    ended = asyncio.Event()
    arrived = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        assert await reader.read() == b""
        ended.set()
        writer.close()

    async with client_of(peer, tmp_path / "s") as client:
        request = asyncio.create_task(client.request("GET", "/x"))
        await arrived.wait()
        request.cancel()
        async with asyncio.timeout(5):
            await ended.wait()
