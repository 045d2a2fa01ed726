"""A gRPC server that gives back what it gets: what the library itself takes, whoever serves.

`python -m flatshare.bench.grpc_echo` takes a free port of 127.0.0.1, says which, and serves until it is ended.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

METHOD = "/flatshare.Echo/Echo"


@contextmanager
def echo_server() -> Iterator[str]:
    """In a process of its own, ended whatever happens; its address."""
    process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def _serve() -> None:
    import grpc  # noqa: PLC0415  # only in this process
    import grpc.aio  # noqa: PLC0415

    class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
        def service(self, _: object) -> Any:
            return grpc.unary_unary_rpc_method_handler(_same)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def _same(message: bytes, _: object) -> bytes:
    return message


if __name__ == "__main__":
    asyncio.run(_serve())
