"""A door of step 1: the Open Inference Protocol over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from flatshare.core.errors import BadInput, FlatshareError, Unsupported
from flatshare.core.settings import GatewaySettings
from flatshare.gateway.doors import v2
from flatshare.gateway.doors.v2 import InferRequest, OpenInference
from flatshare.gateway.visitor import Visitor
from flatshare.telemetry.log import get_logger
from flatshare.wire import compression, container, v2_http
from flatshare.wire.http import Reply, Request, require_body_within
from flatshare.wire.v2_http import ModelPath

log = get_logger("gateway")
LIVE, READY = "/v2/health/live", "/v2/health/ready"
_LARGE_BYTES = 65_536  # compressing more would hold up the event loop for milliseconds
_KEPT = {container.MODEL_DIGEST, container.COLD_START_MS, container.QUEUE_MS, container.MODEL_MS}


class V2HttpDoor:
    def __init__(self, core: OpenInference, settings: GatewaySettings) -> None:
        self._core = core
        self._max_body_bytes = settings.max_body_bytes
        self._fixed: dict[tuple[str, str], Callable[[Request, Visitor], Awaitable[Reply]]] = {
            ("GET", "/v2"): self._server,
            ("GET", "/v2/"): self._server,
            ("GET", LIVE): self._live,
            ("GET", READY): self._ready,
            ("GET", "/v2/models/stats"): self._all_statistics,
            ("POST", "/v2/repository/index"): self._index,
            ("GET", "/v2/logging"): self._log_settings,
            ("POST", "/v2/logging"): self._log_settings,
            ("GET", "/v2/trace/setting"): self._trace_settings,
            ("POST", "/v2/trace/setting"): self._trace_settings,
        }

    async def handle(self, request: Request) -> Reply:
        """Always a reply, in the protocol's form."""
        try:
            return await self._route(request, self._core.visitor(request.id, lambda: request))
        except FlatshareError as error:
            self._core.failed(error)
            return v2_http.error_reply(error, str(error))
        except Exception as error:  # the request boundary
            log.exception("request_failed", path=request.path)
            self._core.failed(error)
            return v2_http.error_reply(error, f"an internal error: look for request {request.id} in the server's log")

    async def _route(self, request: Request, visitor: Visitor) -> Reply:
        fixed = self._fixed.get((request.method, request.path))
        if fixed is not None:
            return await fixed(request, visitor)
        if v2_http.is_shared_memory(request.path):
            raise Unsupported(v2.SHARED_MEMORY)
        repository = v2_http.parse_repository_path(request.path)
        if repository is not None and request.method == "POST":
            return await self._change_repository(repository, request, visitor)
        model = v2_http.parse_model_path(request.path)
        if model is not None and (request.method, model.verb) == ("POST", "/infer"):
            return await self._infer(model, request, visitor)
        if model is not None and model.verb == "/trace/setting":
            return await self._trace_settings(request, visitor)
        if model is not None and request.method == "GET" and model.verb != "/infer":
            return await self._about(model, visitor)
        sentence = f"{request.method} {request.path[:256]} is not part of the Open Inference Protocol as it is served here"
        return Reply(404, orjson.dumps({"error": sentence}))

    async def _infer(self, path: ModelPath, request: Request, visitor: Visitor) -> Reply:
        require_body_within(request, self._max_body_bytes)
        body = await self._plain_body(request)
        json_bytes = v2_http.json_header_bytes(request, body)
        deadline_ms = request.header(container.DEADLINE_MS)
        answer = await self._core.infer(visitor, InferRequest(path.name, path.version, body, json_bytes, deadline_ms=deadline_ms))
        reply = v2_http.infer_reply(answer, [pair for pair in answer.headers if pair[0] in _KEPT])
        return await _compressed(reply, request.header("accept-encoding"))

    async def _about(self, path: ModelPath, visitor: Visitor) -> Reply:
        match path.verb:
            case "/ready":
                await self._core.require_model(visitor, path.name, path.version)
                return Reply(200)
            case "/config":
                return _json(await self._core.config(visitor, path.name, path.version))
            case "/stats":
                return _json(await self._core.statistics(visitor, path.name, path.version))
        return _json(await self._core.metadata(visitor, path.name, path.version))

    async def _change_repository(self, path: ModelPath, request: Request, visitor: Visitor) -> Reply:
        fields = v2_http.parse_object(request.body)
        if path.verb == "unload":
            await self._core.unload(visitor, path.name)
            return Reply(200)
        parameters = fields.get("parameters", {})
        if not isinstance(parameters, dict):
            raise BadInput('"parameters" must be an object')
        await self._core.load(visitor, path.name, parameters)
        return Reply(200)

    async def _plain_body(self, request: Request) -> bytes:
        encoding = request.header("content-encoding")
        if not encoding:
            return request.body
        if len(request.body) < _LARGE_BYTES:
            return compression.decompressed(encoding, request.body, self._max_body_bytes)
        return await asyncio.to_thread(compression.decompressed, encoding, request.body, self._max_body_bytes)

    async def _server(self, _: Request, __: Visitor) -> Reply:
        return _json(self._core.server())

    async def _live(self, _: Request, __: Visitor) -> Reply:
        return Reply(200)

    async def _ready(self, _: Request, __: Visitor) -> Reply:
        self._core.readiness.require()
        return Reply(200)

    async def _all_statistics(self, _: Request, visitor: Visitor) -> Reply:
        return _json(await self._core.statistics(visitor, "", ""))

    async def _index(self, request: Request, visitor: Visitor) -> Reply:
        is_ready_only = v2_http.parse_object(request.body).get("ready") is True
        return _json(await self._core.index(visitor, is_ready_only=is_ready_only))

    async def _log_settings(self, request: Request, visitor: Visitor) -> Reply:
        visitor.require_overview()
        if request.method == "POST":
            raise Unsupported(v2.LOGGING)
        return _json(self._core.log_settings())

    async def _trace_settings(self, request: Request, visitor: Visitor) -> Reply:
        visitor.require_overview()
        if request.method == "POST":
            raise Unsupported(v2.TRACING)
        return _json(self._core.trace_settings())


async def _compressed(reply: Reply, accept: str) -> Reply:
    encoding = compression.accepted_encoding(accept) if accept else None
    if encoding is None:
        return reply
    body = reply.body
    packed = (
        compression.compressed(encoding, body)
        if len(body) < _LARGE_BYTES
        else await asyncio.to_thread(compression.compressed, encoding, body)
    )
    if packed is not None:
        reply.body = packed
        reply.headers.append((b"content-encoding", encoding.encode()))
    return reply


def _json(value: Any) -> Reply:
    return Reply(200, orjson.dumps(value))
