"""The worker's end of the socket: whoever waits for a message reads, for himself and for everybody else who waits."""

import itertools
import select
import socket
import threading
from collections import deque
from typing import Any

from flatshare.pyworker.frames import Frame, NamedArray, Unpacker, pack, receive, send_some


class InstanceGone(BaseException):
    """The instance has hung up: there is nobody left to work for. No model's `except Exception` may hold it up."""


class Link:
    """Safe from several threads: a model's own threads may ask other models and send responses while `execute` runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._readable = select.poll()  # instead of a timeout of the socket's, which would hold for those who send, too
        self._readable.register(connection, select.POLLIN)
        self._unpacker = Unpacker()
        self._jobs: deque[Frame] = deque()
        self._answers: dict[int, Frame] = {}
        self._cancelled: set[int] = set()
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._is_read = False
        self._sending = threading.Lock()

    def send(self, kind: str, tensors: tuple[NamedArray, ...] = (), **fields: Any) -> None:
        packed = pack(Frame(kind, fields, tensors))
        view, descriptors = memoryview(packed.data), packed.descriptors
        try:
            with self._sending:
                while view:
                    view = view[send_some(self._connection, view, descriptors) :]
                    descriptors = ()
        except OSError as error:
            raise InstanceGone from error
        finally:
            packed.close()

    def ask(self, kind: str, tensors: tuple[NamedArray, ...] = (), **fields: Any) -> Frame:
        """Send, and wait for the answer to this very message."""
        with self._changed:
            identity = next(self._ids)
        self.send(kind, tensors, ask=identity, **fields)
        with self._changed:
            while identity not in self._answers:
                self._wait(None)
            return self._answers.pop(identity)

    def next_job(self, timeout_s: float | None) -> Frame | None:
        """The next job, or None if there is none within the time."""
        with self._changed:
            while not self._jobs:
                if not self._wait(timeout_s):
                    return None
            return self._jobs.popleft()

    def take_cancelled(self, request_id: int) -> bool:
        with self._changed:
            return request_id in self._cancelled

    def forget(self, request_id: int) -> None:
        with self._changed:
            self._cancelled.discard(request_id)

    def _wait(self, timeout_s: float | None) -> bool:
        """Until something has arrived, read by this thread or by another. False when the time is over."""
        if self._is_read:
            return self._changed.wait(timeout_s)
        self._is_read = True
        self._changed.release()
        try:
            frames = self._read(timeout_s)
        finally:
            self._changed.acquire()
            self._is_read = False
            self._changed.notify_all()
        for frame in frames:
            self._sort(frame)
        return bool(frames) or timeout_s is None

    def _read(self, timeout_s: float | None) -> list[Frame]:
        if timeout_s is not None and not self._readable.poll(1e3 * timeout_s):
            return []
        try:
            data, descriptors = receive(self._connection)
        except OSError as error:
            raise InstanceGone from error
        if not data:
            raise InstanceGone
        return list(self._unpacker.feed(data, descriptors))

    def _sort(self, frame: Frame) -> None:
        if frame.kind == "answer":
            self._answers[frame.fields["ask"]] = frame
        elif frame.kind == "cancel":
            self._cancelled.add(frame.fields["request"])
        else:
            self._jobs.append(frame)
