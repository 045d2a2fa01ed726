"""gRPC methods behind a TCP port, until they are told to stop. The library does the protocol; bounds and draining are said here.

Imported only where gRPC is served (the library takes 9 MB of private memory), and nothing else of ours imports the library: it reads
its environment when it is imported.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # instances are started with exec: nothing of the library lives on in them
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log tells callers' mistakes as errors of ours

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from flatshare.core.errors import PortInUse
from flatshare.serving.tls import Certificate
from flatshare.telemetry.log import get_logger

log = get_logger("grpc")
_HEADROOM_BYTES = 65_536  # names, shapes and parameters around the tensors


class Refusal(Exception):
    """What a method raises to end in a status. `code` is the name of a gRPC status code."""

    def __init__(self, code: str, sentence: str, trailers: tuple[tuple[str, str], ...]) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.trailers = trailers


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as the connection and the request's metadata tell."""

    metadata: dict[bytes, bytes]
    """Names are lower case."""
    peer: str
    """The address that it came from."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service by its full name, and its methods' handlers."""

    name: str
    handlers: Mapping[str, Any]


class RpcServer:
    """Serves services. Made, run and stopped on one event loop."""

    def __init__(self, services: tuple[Service, ...], *, max_body_bytes: int, drain_s: float, max_calls: int) -> None:
        options = [
            ("grpc.max_receive_message_length", max_body_bytes + _HEADROOM_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a share of its callers
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=max_calls)
        for service in services:
            handlers = grpc.method_handlers_generic_handler(service.name, service.handlers)
            self._server.add_generic_rpc_handlers((handlers,))
        self._drain_s = drain_s
        self._told_to_stop = asyncio.Event()

    async def listen_on_port(self, host: str, port: int, certificate: Certificate | None) -> int:
        """Take the port; the port that it became. Raises PortInUse."""
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificate is None:
                taken = self._server.add_insecure_port(where)
            else:
                taken = self._server.add_secure_port(where, _credentials(certificate))
        except RuntimeError as error:
            raise PortInUse(f"port {port} of {host} cannot be taken for gRPC: choose another with --grpc-port, or --no-grpc") from error
        await self._server.start()
        return int(taken)

    def stop(self) -> None:
        """Begin to drain. May be called more than once."""
        self._told_to_stop.set()

    async def run(self) -> None:
        """Serve until `stop` was called and everybody who was being served has an answer."""
        await self._told_to_stop.wait()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self._server.stop(self._drain_s)
        if loop.time() - began_s >= self._drain_s:
            log.warning("drain_time_over")


def _credentials(certificate: Certificate) -> Any:
    """The certificate as it is at each handshake."""

    def now() -> Any:
        return grpc.ssl_server_certificate_configuration([(certificate.pem.key, certificate.pem.chain)])

    return grpc.dynamic_ssl_server_credentials(now(), now)


def unary(answer: Callable[[Any, Caller], Awaitable[Any]], request: Any, response: Any) -> Any:
    """A method with one request and one answer, of these message classes. `answer` may raise Refusal."""

    async def handle(message: Any, context: Any) -> Any:
        try:
            return await answer(_decoded(request, message), _caller(context))
        except Refusal as refusal:
            refused = refusal
        return await _abort(context, refused)

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=response.SerializeToString)


def streaming(answer: Callable[[AsyncIterator[Any], Caller], AsyncIterator[Any]], request: Any, response: Any) -> Any:
    """A method with many requests and many answers."""

    async def handle(messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        try:
            async for message in answer((_decoded(request, message) async for message in messages), _caller(context)):
                yield message
        except Refusal as refusal:
            refused = refusal
        else:
            return
        await _abort(context, refused)

    return grpc.stream_stream_rpc_method_handler(handle, response_serializer=response.SerializeToString)


def _decoded(kind: Any, message: bytes) -> Any:
    """Here and not by the library, which answers bytes that are no message with the name of a Python class."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise Refusal("INVALID_ARGUMENT", f"the request is no {kind.DESCRIPTOR.full_name}", ()) from error


def _caller(context: Any) -> Caller:
    metadata = {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in context.invocation_metadata()}
    return Caller(metadata, unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]"))


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    await context.abort(grpc.StatusCode[refusal.code], refusal.sentence, refusal.trailers)
    raise AssertionError("the library's abort returned. This is a bug.")
