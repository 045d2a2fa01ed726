"""A TCP proxy before a real server that lets each connection through, or does to it what networks and overloaded stores do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_ONE_READ = 65_536
STALL_S = 30.0  # longer than any time-out that is waited for here


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of one request's answer: `status` instead of it, or only its first `passed_bytes`, then silence or a reset."""

    status: int | None = None
    passed_bytes: int = 0
    is_silent: bool = False


def refused(status: int) -> Fault:
    return Fault(status=status)


def cut_after(passed_bytes: int) -> Fault:
    return Fault(passed_bytes=passed_bytes)


def stalled_after(passed_bytes: int) -> Fault:
    return Fault(passed_bytes=passed_bytes, is_silent=True)


@dataclass
class FaultyProxy:
    """`script` says what becomes of the next requests, first to last; after it, all is well, or `ever` happens."""

    upstream_port: int
    script: list[Fault | None] = field(default_factory=list)
    ever: Fault | None = None
    delay_s: float = 0.0
    """Each answer begins so much later."""
    port: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def up(self) -> Iterator["FaultyProxy"]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                yield self
            finally:
                self._is_over.set()
                listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        """One request a connection, so that a fault meets exactly one."""
        with caller, suppress(OSError):
            request = _head(caller)
            if not request:
                return
            with self._lock:
                self.requests += 1
                fault = self.script.pop(0) if self.script else self.ever
            self._is_over.wait(self.delay_s)
            if fault is not None and fault.status is not None:
                caller.sendall(b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % fault.status)
                return
            with socket.create_connection(("127.0.0.1", self.upstream_port)) as server:
                server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                self._answer(server, caller, fault)

    def _answer(self, server: socket.socket, caller: socket.socket, fault: Fault | None) -> None:
        left = None if fault is None else fault.passed_bytes
        while data := server.recv(_ONE_READ):
            caller.sendall(data if left is None else data[:left])
            if left is not None:
                left -= min(left, len(data))
                if left == 0:
                    break
        if fault is not None and fault.is_silent:
            self._is_over.wait(STALL_S)
        if fault is not None:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset, not an orderly end


def _head(caller: socket.socket) -> bytes:
    """A GET or HEAD request, which has no body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = caller.recv(_ONE_READ)
        if not more:
            return b""
        data += more
    return data
