"""A door of step 1: the Open Inference Protocol over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf import json_format

from flatshare.core.errors import AccessDenied, FlatshareError, Unauthenticated, Unsupported
from flatshare.gateway.doors import v2
from flatshare.gateway.doors.v2 import InferRequest, OpenInference
from flatshare.gateway.invoke import request_ids
from flatshare.gateway.streaming import WholeLines
from flatshare.gateway.visitor import Visitor
from flatshare.serving.rpc import Caller, Refusal, Service, Streaming, Unary
from flatshare.telemetry.log import CURRENT_REQUEST, get_logger
from flatshare.wire import faults, v2_grpc
from flatshare.wire.http import REQUEST_ID, Request
from flatshare.wire.v2_schema import MESSAGES, SERVICE

log = get_logger("gateway")
_SHARED_MEMORY = tuple(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister"))
_PROBES = {"ServerLiveRequest", "ServerReadyRequest"}  # answered while the server starts; all else waits until it has
_NO_DEADLINE_S = 86_400.0
_Answer = Callable[[Any, Visitor], Awaitable[Any]]


class V2GrpcDoor:
    """`service` is the whole of it: method handlers for the server."""

    def __init__(self, core: OpenInference) -> None:
        self._core = core
        self._request_ids = request_ids()
        unary = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelInfer": self._infer,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "TraceSetting": self._trace_settings,
            "LogSettings": self._log_settings,
        }
        methods: dict[str, Unary | Streaming] = {
            name: self._handler(answer, f"{name}Request", f"{name}Response") for name, answer in unary.items()
        }
        methods |= {name: self._handler(_shared_memory, "Empty", "Empty") for name in _SHARED_MEMORY}
        methods["ModelStreamInfer"] = Streaming(self._stream, MESSAGES["ModelInferRequest"], MESSAGES["ModelStreamInferResponse"])
        self.service = Service(SERVICE, methods)

    def _handler(self, answer: _Answer, request: str, response: str) -> Unary:
        """One method. Whatever goes wrong becomes a status: this is the request boundary."""
        method = request.removesuffix("Request")

        async def handle(message: Any, caller: Caller) -> Any:
            visitor = self._visitor(method, caller)
            try:
                if not self._core.readiness.has_started and request not in _PROBES:
                    await self._core.readiness.until_started()
                return await answer(message, visitor)
            except FlatshareError as error:
                self._core.failed(error)
                raise _refusal(error, str(error), visitor) from error
            except Exception as error:
                log.exception("request_failed", method=method)
                self._core.failed(error)
                raise _refusal(error, _internal(visitor), visitor) from error

        return Unary(handle, MESSAGES[request], MESSAGES[response])

    def _visitor(self, method: str, caller: Caller) -> Visitor:
        """The caller, asked who it is by the same form as over HTTP."""
        request_id = next(self._request_ids)
        CURRENT_REQUEST.set(request_id)
        return self._core.visitor(
            request_id,
            lambda: Request("POST", f"/{SERVICE}/{method}", caller.metadata, peer=caller.peer, id=request_id),
            caller.left_s,
        )

    async def _infer(self, request: Any, visitor: Visitor) -> Any:
        message = v2_grpc.parse(request)
        asked = InferRequest(request.model_name, request.model_version, message.body, message.json_bytes, deadline_ms=_deadline_ms(visitor))
        answer = await self._core.infer(visitor, asked)
        return v2_grpc.render(answer.body, answer.content_type, request.model_name)

    async def _stream(self, requests: AsyncIterator[Any], caller: Caller) -> AsyncIterator[Any]:
        """Requests in turn. One that fails is answered with its error, and the stream goes on, as Triton's does.

        A server that stops ends the stream between two requests: an idle one would hold it up for the whole drain time.
        """
        async for request in _until(self._core.readiness.is_draining, requests):
            visitor = self._visitor("ModelStreamInfer", caller)
            try:
                await self._core.readiness.until_started()
                async for answer in self._answers(request, visitor):
                    yield MESSAGES["ModelStreamInferResponse"](infer_response=answer)
                continue
            except FlatshareError as error:
                self._core.failed(error)
                sentence = str(error)
            except Exception as error:
                log.exception("request_failed", method="ModelStreamInfer")
                self._core.failed(error)
                sentence = _internal(visitor)
            failed = MESSAGES["ModelInferResponse"](id=request.id, model_name=request.model_name)
            yield MESSAGES["ModelStreamInferResponse"](error_message=sentence, infer_response=failed)

    async def _answers(self, request: Any, visitor: Visitor) -> AsyncIterator[Any]:
        """One, or what a model writes as it comes; the last says that it is."""
        message = v2_grpc.parse(request)
        asked = InferRequest(request.model_name, request.model_version, message.body, message.json_bytes, is_streamed=True)
        reply = await self._core.infer(visitor, asked)
        if reply.parts is None:
            answer = v2_grpc.render(reply.body, reply.content_type, request.model_name)
            v2_grpc.set_scalars(answer.parameters, {"triton_final_response": True})
            yield answer
            return
        try:
            async for lines in WholeLines(reply.parts):
                for line in lines.splitlines():
                    yield v2_grpc.render_line(line, request.model_name, request.id)
        finally:
            await reply.parts.aclose()

    async def _server_live(self, _: Any, __: Visitor) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any, __: Visitor) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._core.readiness.is_ready)

    async def _server_metadata(self, _: Any, __: Visitor) -> Any:
        return _message("ServerMetadataResponse", self._core.server())

    async def _model_ready(self, request: Any, visitor: Visitor) -> Any:
        try:
            await self._core.require_model(visitor, request.name, request.version)
        except (Unauthenticated, AccessDenied):
            raise
        except FlatshareError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Any, visitor: Visitor) -> Any:
        return _message("ModelMetadataResponse", await self._core.metadata(visitor, request.name, request.version))

    async def _model_config(self, request: Any, visitor: Visitor) -> Any:
        return _message("ModelConfigResponse", {"config": await self._core.config(visitor, request.name, request.version)})

    async def _statistics(self, request: Any, visitor: Visitor) -> Any:
        return _message("ModelStatisticsResponse", await self._core.statistics(visitor, request.name, request.version))

    async def _index(self, request: Any, visitor: Visitor) -> Any:
        return _message("RepositoryIndexResponse", {"models": await self._core.index(visitor, is_ready_only=request.ready)})

    async def _load(self, request: Any, visitor: Visitor) -> Any:
        await self._core.load(visitor, request.model_name, request.parameters)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, visitor: Visitor) -> Any:
        await self._core.unload(visitor, request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def _trace_settings(self, request: Any, visitor: Visitor) -> Any:
        visitor.require_overview()
        if request.settings:
            raise Unsupported(v2.TRACING)
        return _message("TraceSettingResponse", {"settings": {k: {"value": v} for k, v in self._core.trace_settings().items()}})

    async def _log_settings(self, request: Any, visitor: Visitor) -> Any:
        visitor.require_overview()
        if request.settings:
            raise Unsupported(v2.LOGGING)
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        return _message("LogSettingsResponse", {"settings": {k: {kinds[type(v)]: v} for k, v in self._core.log_settings().items()}})


async def _until(stop: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while True:
            arriving = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait({arriving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            request = arriving.result() if arriving.done() else None
            if request is None:
                arriving.cancel()
                return
            yield request
    finally:
        stopped.cancel()


async def _shared_memory(_: Any, __: Visitor) -> Any:
    raise Unsupported(v2.SHARED_MEMORY)


def _message(name: str, fields: dict[str, Any]) -> Any:
    return json_format.ParseDict(fields, MESSAGES[name](), ignore_unknown_fields=True)


def _internal(visitor: Visitor) -> str:
    return f"an internal error: look for request {visitor.request_id} in the server's log"


def _deadline_ms(visitor: Visitor) -> str:
    """gRPC's own deadline, as callers over HTTP say it. One of days is none: clients without one send the largest that they know."""
    is_none = visitor.left_s is None or visitor.left_s > _NO_DEADLINE_S
    return "" if is_none else f"{max(1.0, 1e3 * (visitor.left_s or 0.0)):.0f}"


def _refusal(error: Exception, sentence: str, visitor: Visitor) -> Refusal:
    may_retry = isinstance(error, FlatshareError) and error.can_retry
    trailers = ((REQUEST_ID.decode(), visitor.request_id), *((("retry-after", "1"),) if may_retry else ()))
    return Refusal(faults.v2_fault(error).grpc, sentence, trailers)
