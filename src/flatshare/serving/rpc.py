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
_LINGER_S = 0.5  # for the last answers to be read
_HEADROOM_BYTES = 65_536  # names, shapes and parameters around the tensors


class Refusal(Exception):
    """What a method raises to end in a status. `code` is the name of a gRPC status code."""

    def __init__(self, code: str, sentence: str, trailers: tuple[tuple[str, str], ...]) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.trailers = trailers


class Caller:
    """Who sent a request, as far as the connection and the request's metadata tell. Found out only if somebody asks."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Names are lower case."""
        pairs = self._context.invocation_metadata()
        return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in pairs}

    @property
    def left_s(self) -> float | None:
        """Until the caller gives up (its deadline, gRPC's own)."""
        left_s: float | None = self._context.time_remaining()
        return left_s

    @property
    def peer(self) -> str:
        """The address that it came from."""
        return unquote(self._context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")


class UnderWay:
    """The calls that are being answered. No generator's context: every request passes it."""

    __slots__ = ("_told_to_stop", "count", "emptied")

    def __init__(self, told_to_stop: asyncio.Event) -> None:
        self._told_to_stop = told_to_stop
        self.count = 0
        self.emptied = asyncio.Event()

    def __enter__(self) -> None:
        """Raises Refusal once the server stops."""
        if self._told_to_stop.is_set():
            raise Refusal("UNAVAILABLE", "the server stops: call again, another one may answer", ())
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self.emptied.set()


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request and one answer, of these message classes. `answer` may raise Refusal."""

    answer: Callable[[Any, Caller], Awaitable[Any]]
    request: Any
    response: Any


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method with many requests and many answers."""

    answer: Callable[[AsyncIterator[Any], Caller], AsyncIterator[Any]]
    request: Any
    response: Any


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service by its full name."""

    name: str
    methods: Mapping[str, Unary | Streaming]


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
            handlers = {name: self._handler(method) for name, method in service.methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
        self._drain_s = drain_s
        self._told_to_stop = asyncio.Event()
        self._under_way = UnderWay(self._told_to_stop)

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
        """Serve until `stop` was called and everybody who was being served has an answer.

        The library's own stop closes a connection with its last call, and whoever has not yet read a large answer then loses it to a
        reset. So calls that come now are refused, those under way end, and their answers get a moment to arrive.
        """
        await self._told_to_stop.wait()
        try:
            async with asyncio.timeout(self._drain_s):
                while self._under_way.count:
                    self._under_way.emptied.clear()
                    await self._under_way.emptied.wait()
                    await asyncio.sleep(_LINGER_S)
        except TimeoutError:
            log.warning("drain_time_over", cut_off=self._under_way.count)
        await self._server.stop(0)

    def _handler(self, method: Unary | Streaming) -> Any:
        serializer = method.response.SerializeToString
        if isinstance(method, Unary):
            return grpc.unary_unary_rpc_method_handler(self._answering(method), response_serializer=serializer)
        return grpc.stream_stream_rpc_method_handler(self._answering_stream(method), response_serializer=serializer)

    def _answering(self, method: Unary) -> Callable[[bytes, Any], Awaitable[Any]]:
        async def handle(message: bytes, context: Any) -> Any:
            try:
                with self._under_way:
                    return await method.answer(_decoded(method.request, message), Caller(context))
            except Refusal as refusal:
                refused = refusal
            return await _abort(context, refused)

        return handle

    def _answering_stream(self, method: Streaming) -> Callable[[AsyncIterator[bytes], Any], AsyncIterator[Any]]:
        async def handle(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            try:
                with self._under_way:
                    async for message in method.answer((_decoded(method.request, m) async for m in messages), Caller(context)):
                        yield message
                    return
            except Refusal as refusal:
                refused = refusal
            await _abort(context, refused)

        return handle


def _credentials(certificate: Certificate) -> Any:
    """The certificate as it is at each handshake."""

    def now() -> Any:
        return grpc.ssl_server_certificate_configuration([(certificate.pem.key, certificate.pem.chain)])

    return grpc.dynamic_ssl_server_credentials(now(), now)


def _decoded(kind: Any, message: bytes) -> Any:
    """Here and not by the library, which answers bytes that are no message with the name of a Python class."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise Refusal("INVALID_ARGUMENT", f"the request is no {kind.DESCRIPTOR.full_name}", ()) from error


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    await context.abort(grpc.StatusCode[refusal.code], refusal.sentence, refusal.trailers)
    raise AssertionError("the library's abort returned. This is a bug.")
