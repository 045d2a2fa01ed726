"""uvicorn, set up as we want it, and stopped in order: stop accepting, finish what is under way, then return to the caller."""

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from flatshare.serving.asgi import asgi
from flatshare.wire.http import Handler

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class HandlerServer(uvicorn.Server):
    """Serves one handler on a TCP port or a Unix socket until a signal or `stop`."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body_bytes: int,
        drain_s: float,
        keep_alive_s: int,
        host: str = "",
        port: int = 0,
        socket_path: str | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                asgi(handler, max_body_bytes=max_body_bytes),
                host=host,
                port=port,
                uds=socket_path,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=int(drain_s),
            )
        )

    def stop(self) -> None:
        """Begin to drain."""
        self.should_exit = True

    async def port(self) -> int:
        """The port once it is open; uvicorn has no event for it."""
        while not self.started:
            await asyncio.sleep(0.01)
        return int(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's own version raises the signal again after draining, which would end the process before it has cleaned up."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # a second one does not interrupt the cleaning up, which is bounded
