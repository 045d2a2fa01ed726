"""A second way into a connection, for the worker thread that has the answer: it goes out two turns of the event loop earlier."""

import os
import socket
import threading


class SocketOutlet:
    """A descriptor of its own for the connection's socket: what is sent can never reach a later connection that got the old number."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is a plain socket without blocking, whose owner writes nothing while `send` may be called."""
        self._socket: socket.socket | None = socket.socket(fileno=os.dup(descriptor))
        self._socket.setblocking(False)
        self._lock = threading.Lock()

    def send(self, message: bytes) -> int:
        """How many bytes the kernel took: none if the peer reads too slowly, or has left."""
        with self._lock:
            if self._socket is None:
                return 0
            try:
                return self._socket.send(message)
            except OSError:
                return 0  # the owner meets the same when it writes the rest

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
