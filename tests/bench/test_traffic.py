"""The benchmark's callers: an open loop waits for nobody, a flood asks again as soon as it is answered."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from flatshare.bench.server import RunningServer
from flatshare.bench.traffic import at_random_moments, flood

_HELD_S = 0.3


class _Slow:
    """An HTTP server that answers each request after a while, however many there are; every tenth with 503."""

    def __init__(self) -> None:
        self.port = 0
        self.at_once = self.most_at_once = self.answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(_HELD_S)
            self.at_once -= 1
            self.answered += 1
            status = b"503 Service Unavailable" if self.answered % 10 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 %b\r\nX-Flatshare-Model-Ms: 7.5\r\nX-Flatshare-Queue-Ms: 2.5\r\nContent-Length: 2\r\n\r\n{}" % status)


@contextmanager
def slow_server() -> Iterator[_Slow]:
    slow, begun, loop = _Slow(), threading.Event(), asyncio.new_event_loop()
    is_over = asyncio.Event()

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await slow.serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            slow.port = server.sockets[0].getsockname()[1]
            begun.set()
            await is_over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    begun.wait()
    try:
        yield slow
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join()
        loop.close()


def test_an_open_loop_asks_on_although_nobody_has_been_answered() -> None:
    with slow_server() as slow:
        answers = at_random_moments(cast("RunningServer", slow), lambda _: ("a/b", "text"), rate_rps=200, seconds=0.5)
    assert len(answers) == 100
    assert slow.most_at_once > 40, "as many as come in 0.3 s, where a closed loop has as many as it has callers"
    assert all(answer.took_s >= _HELD_S for answer in answers)
    assert {(answer.status, answer.model_ms, answer.queue_ms) for answer in answers} == {(200, 7.5, 2.5), (503, 7.5, 2.5)}
    assert {answer.is_in_time(1e6) for answer in answers if answer.status == 503} == {False}


def test_a_flood_is_so_many_at_once_and_no_more() -> None:
    with slow_server() as slow, flood(cast("RunningServer", slow), ["a/b", "a/c"], callers=16, tokens=30) as answers:
        while len(answers) < 48:
            threading.Event().wait(0.01)
    assert slow.most_at_once == 16
