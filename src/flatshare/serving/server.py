"""A handler behind a TCP port or a Unix socket, until it is told to stop.

Stopping is five steps: accept no more, close idle connections, let requests under way be answered, wait for that no longer than the
drain time, cut off what is left.
"""

import asyncio
import gc
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from flatshare.core.sizes import MIB
from flatshare.serving.connection import Bounds, Connection
from flatshare.telemetry.log import get_logger
from flatshare.wire.http import Handler

log = get_logger("http")
_SWEEP_S = 1.0
_BACKLOG = 1024
_HANDSHAKE_S = 10.0


@dataclass(frozen=True, slots=True)
class Most:
    """What all callers may take together, and one address of them."""

    connections: int = 4096
    connections_per_peer: int = 1024
    """So that no one address takes all; a proxy before us is one address."""
    body_bytes: int = 256 * MIB
    """Of requests that are being received or answered."""


class HandlerServer:
    """Serves one handler. Made, run and stopped on one event loop."""

    def __init__(self, handler: Handler, bounds: Bounds, *, drain_s: float, most: "Most | None" = None) -> None:
        self._handler = handler
        self._bounds = bounds
        self._drain_s = drain_s
        self._most = most or Most()
        self._peers: Counter[str] = Counter()
        self._held_bytes = 0
        self._connections: set[Connection] = set()
        self._told_to_stop = asyncio.Event()
        self._emptied = asyncio.Event()
        self._listener: asyncio.Server | None = None

    async def listen_on_port(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Take the port; the port that it became. Who connects waits until `run`. Raises OSError if the port is in use."""
        taken = await asyncio.to_thread(_listening_socket, host, port)
        handshake_s = None if tls is None else _HANDSHAKE_S
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection, sock=taken, start_serving=False, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_s
        )
        return int(taken.getsockname()[1])

    async def listen_on_socket(self, path: str) -> None:
        """Accept connections on a Unix socket at once; a stale one of an earlier process is replaced."""
        self._listener = await asyncio.get_running_loop().create_unix_server(self._connection, path, backlog=_BACKLOG)

    def stop(self) -> None:
        """Begin to drain. May be called more than once."""
        self._told_to_stop.set()

    async def run(self) -> None:
        """Accept and serve until `stop` was called and everybody who was being served has an answer."""
        assert self._listener is not None, "run before it listens. This is a bug."
        await self._listener.start_serving()
        sweeper = asyncio.get_running_loop().create_task(self._sweep())
        await self._told_to_stop.wait()
        await self._drain(self._listener)
        sweeper.cancel()

    # What connections call.

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._peers[connection.peer] += 1
        if len(self._connections) > self._most.connections:
            log.warning("too_many_connections", limit=self._most.connections)
            connection.abort()
        elif connection.peer and self._peers[connection.peer] > self._most.connections_per_peer:
            log.warning("too_many_connections", limit=self._most.connections_per_peer, peer=connection.peer)
            connection.abort()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._peers[connection.peer] -= 1
        if self._peers[connection.peer] <= 0:
            del self._peers[connection.peer]
        if not self._connections:
            self._emptied.set()

    def can_hold(self, more_bytes: int) -> bool:
        if more_bytes > 0 and self._held_bytes + more_bytes > self._most.body_bytes:
            return False
        self._held_bytes += more_bytes
        return True

    def _connection(self) -> Connection:
        return Connection(self._handler, self._bounds, self)

    async def _drain(self, listener: asyncio.Server) -> None:
        listener.close()
        for connection in tuple(self._connections):
            connection.close_when_idle()
        try:
            async with asyncio.timeout(self._drain_s):
                while self._connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            log.warning("drain_time_over", cut_off=len(self._connections))
            for connection in tuple(self._connections):
                connection.abort()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for connection in tuple(self._connections):
                connection.enforce(loop.time())


def _listening_socket(host: str, port: int) -> socket.socket:
    """Bound and listening: from now on the kernel holds connections for us, and refuses the port to others."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT ask to stop. They stay caught: what cleans up afterwards is bounded, and may not be interrupted."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def settle_memory() -> None:
    """Once everything long-lived is there: take it out of the garbage collector's rounds, which would stop requests to walk it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
