"""Callers for the memory benchmark: some ask as fast as they are answered, some at moments that chance decided, all are timed.

All callers of one kind live on one event loop in a thread of its own. A thread each would take turns at Python's lock, and what a
caller waits for it would count as the server's time; and an open loop needs as many connections as requests are under way.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import httptools
import numpy as np
import orjson

from flatshare.bench.server import ENDPOINT, RunningServer, _message
from flatshare.bench.tenants import text_of

_DEADLINE = "X-Flatshare-Deadline-Ms"
_MOST_CONNECTIONS = 4_096
_LEAD_S = 0.1

Body = str | Mapping[str, object]
"""A text, or all of a request's JSON."""
Pick = Callable[[int], tuple[str, Body]]
"""Target model and body of the request with this number."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's end."""

    sent_s: float
    """When it was due, by time.perf_counter."""
    took_s: float
    status: int
    queue_ms: float
    model_ms: float
    """Tokenise and run, as the server says: of the whole run if others shared it."""

    def is_in_time(self, deadline_ms: float) -> bool:
        return self.status == 200 and 1e3 * self.took_s <= deadline_ms


def at_random_moments(
    server: RunningServer, pick: Pick, *, rate_rps: float, seconds: float, deadline_ms: float | None = None
) -> list[Answer]:
    """Poisson arrivals, whether the last ones have been answered or not: each finds a connection, or makes one."""
    moments = np.cumsum(np.random.default_rng(7).exponential(1 / rate_rps, int(rate_rps * seconds)))
    messages = [_invocation(*pick(number), deadline_ms) for number in range(len(moments))]

    async def run() -> list[Answer]:
        lines, begin_s = _Lines(server.port), time.perf_counter() + _LEAD_S
        tasks = []
        for moment, message in zip(moments, messages, strict=True):
            due_s = begin_s + float(moment)
            if (early_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            tasks.append(asyncio.create_task(lines.ask(message, due_s)))
        answers = await asyncio.gather(*tasks)
        lines.close()
        return answers

    return asyncio.run(run())


@contextmanager
def flood(server: RunningServer, targets: Sequence[str], *, callers: int, tokens: int, texts: int = 1) -> Iterator[list[Answer]]:
    """Callers who ask again as soon as they are answered, as long as the block runs; each time with so many texts of so many tokens."""
    bodies = [[text_of(tokens, number + other) for other in range(texts)] for number in range(64 * len(targets))]
    messages = [_invocation(targets[number % len(targets)], {"inputs": body}) for number, body in enumerate(bodies)]
    is_over, answers = threading.Event(), list[Answer]()

    async def call(lines: "_Lines", number: int) -> None:
        while not is_over.is_set():
            answers.append(await lines.ask(messages[number % len(messages)], time.perf_counter()))
            number += callers + 1  # a stride that meets every target

    async def run() -> None:
        lines = _Lines(server.port)
        await asyncio.gather(*(call(lines, index) for index in range(callers)))
        lines.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        thread.join()


def _invocation(target: str, body: Body, deadline_ms: float | None = None) -> bytes:
    more = f"X-Amzn-SageMaker-Target-Model: {target}\r\n" + (f"{_DEADLINE}: {deadline_ms:g}\r\n" if deadline_ms else "")
    return _message("POST", f"/endpoints/{ENDPOINT}/invocations", orjson.dumps({"inputs": body} if isinstance(body, str) else body), more)


class _Lines:
    """Keep-alive connections to one server, as many as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Line] = []
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def ask(self, message: bytes, due_s: float) -> Answer:
        """Raises ConnectionError if the server hangs up."""
        async with self._room:
            if self._idle:
                line = self._idle.pop()
            else:
                _, line = await asyncio.get_running_loop().create_connection(_Line, "127.0.0.1", self._port)
            answer = await line.exchange(message, due_s)
            self._idle.append(line)
            return answer

    def close(self) -> None:
        for line in self._idle:
            line.close()


class _Line(asyncio.Protocol):
    """One connection, one request at a time, with as little of its own as can be."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._expect(0.0)

    async def exchange(self, message: bytes, due_s: float) -> Answer:
        assert self._transport is not None, "asked before it was connected. This is a bug."
        self._expect(due_s)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _expect(self, due_s: float) -> None:
        self._due_s = due_s
        self._parser = httptools.HttpResponseParser(self)
        self._queue_ms = self._model_ms = 0.0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server hung up"))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-flatshare-model-ms":
                self._model_ms = float(value)
            case b"x-flatshare-queue-ms":
                self._queue_ms = float(value)

    def on_message_complete(self) -> None:
        assert self._answer is not None, "an answer to no question"
        took_s = time.perf_counter() - self._due_s
        self._answer.set_result(Answer(self._due_s, took_s, self._parser.get_status_code(), self._queue_ms, self._model_ms))
