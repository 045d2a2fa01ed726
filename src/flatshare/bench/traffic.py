"""Callers for the memory benchmark: some ask as fast as they are answered, some at moments that chance decided, all are timed."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import orjson

from flatshare.bench.server import ENDPOINT, PlainCaller, RunningServer, _message
from flatshare.bench.tenants import text_of

_DEADLINE = "X-Flatshare-Deadline-Ms"


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's end."""

    sent_s: float
    """When it was due, by time.perf_counter."""
    took_s: float
    status: int
    model_ms: float
    """Tokenise and run, as the server says."""


class TimedCaller(PlainCaller):
    """One connection that keeps what the server says of its time."""

    model_ms = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-flatshare-model-ms":
            self.model_ms = float(value)

    def timed(self, target: str, text: str, *, due_s: float | None = None, deadline_ms: float | None = None) -> Answer:
        more = f"X-Amzn-SageMaker-Target-Model: {target}\r\n" + (f"{_DEADLINE}: {deadline_ms:g}\r\n" if deadline_ms else "")
        message = _message("POST", f"/endpoints/{ENDPOINT}/invocations", orjson.dumps({"inputs": text}), more)
        began_s = time.perf_counter() if due_s is None else due_s
        self.model_ms = 0.0
        status, _ = self.exchange(message)
        return Answer(began_s, time.perf_counter() - began_s, status, self.model_ms)


def at_random_moments(
    server: RunningServer,
    pick: Callable[[int], tuple[str, str]],
    *,
    rate_rps: float,
    seconds: float,
    callers: int,
    deadline_ms: float | None = None,
) -> list[Answer]:
    """Poisson arrivals, whether the last ones have been answered or not, as far as `callers` connections reach; a late start is a wait."""
    moments = np.cumsum(np.random.default_rng(7).exponential(1 / rate_rps, int(rate_rps * seconds)))
    begin_s, taken, lock, answers = time.perf_counter() + 0.1, iter(enumerate(moments)), threading.Lock(), list[Answer]()

    def call() -> None:
        with TimedCaller.to_port(server.port) as caller:
            while True:
                with lock:
                    number, moment = next(taken, (0, None))
                if moment is None:
                    return
                due_s = begin_s + float(moment)
                time.sleep(max(0.0, due_s - time.perf_counter()))
                target, text = pick(number)
                answers.append(caller.timed(target, text, due_s=due_s, deadline_ms=deadline_ms))

    _together([call] * callers)
    return answers


@contextmanager
def flood(server: RunningServer, targets: Sequence[str], *, callers: int, tokens: int) -> Iterator[list[Answer]]:
    """Callers who ask again as soon as they are answered, as long as the block runs."""
    is_over, answers = threading.Event(), list[Answer]()

    def call(index: int) -> None:
        number = index
        with TimedCaller.to_port(server.port) as caller:
            while not is_over.is_set():
                answers.append(caller.timed(targets[number % len(targets)], text_of(tokens, number)))
                number += callers

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _together(jobs: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
