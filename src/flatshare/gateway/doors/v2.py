"""What the Open Inference Protocol asks of the server, whether over HTTP or gRPC: the two doors only translate."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flatshare import __version__
from flatshare.core.errors import FlatshareError, Unsupported
from flatshare.core.ids import EndpointName
from flatshare.gateway.call import Answer, ModelCall
from flatshare.gateway.invoke import Invoker, Outcome, stopwatch
from flatshare.gateway.names import ModelName, ModelNames
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.statistics import CountedVersion, Duration
from flatshare.gateway.status import FleetStatus
from flatshare.gateway.visitor import LOAD, UNLOAD, Visitor
from flatshare.security.entry import Entry
from flatshare.telemetry.metrics import UNKNOWN, GatewayMetrics
from flatshare.wire import asks, container, faults, v2_http
from flatshare.wire.container import ModelMetadata
from flatshare.wire.http import Reply, Request

_UNKNOWN_ENDPOINT = EndpointName(UNKNOWN)
_CALLER_LEFT = 499  # as nginx logs it: no caller sees it
SHARED_MEMORY = "shared memory is not supported: send tensors in the request, as JSON or binary data"
TRACING = "tracing cannot be set here: its settings are fixed"
LOGGING = "the log cannot be set while the server runs: start it with --log-level"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference: JSON, then binary tensors."""

    name: str
    version: str
    body: bytes
    json_bytes: int
    is_streamed: bool = False
    """The answer may come in parts; whoever asks so closes them."""


class OpenInference:
    """Answers are the protocol's JSON objects; gRPC has messages of the same fields. Raises what goes wrong."""

    def __init__(
        self, invoker: Invoker, names: ModelNames, status: FleetStatus, metrics: GatewayMetrics, readiness: Readiness, entry: Entry
    ) -> None:
        self._invoker = invoker
        self._names = names
        self._status = status
        self._metrics = metrics
        self._entry = entry
        self.readiness = readiness

    def visitor(self, request_id: str, request: Callable[[], Request]) -> Visitor:
        return Visitor(self._entry, request_id, request)

    def failed(self, error: BaseException) -> None:
        """An error goes out to a caller."""
        self._metrics.failed(faults.v2_fault(error).grpc)

    async def infer(self, visitor: Visitor, request: InferRequest) -> Reply:
        """The instance's answer, with a status below 300."""
        seconds = stopwatch()
        call: ModelCall | None = None
        answer: Answer | None = None
        status = 500
        try:
            with self._invoker.admitted():
                model = await self._model(visitor, request.name)
                headers = (*v2_http.instance_headers(request.json_bytes, request.name), *_version(request.version))
                if request.is_streamed:
                    headers = (*headers, (container.STREAM, b"1"))
                call = ModelCall(
                    model.endpoint, model.target, visitor.request_id, headers=headers, body=request.body, takes_parts=request.is_streamed
                )
                answer = await self._invoker.ask(call)
                reply = _successful(answer)
                status = reply.status
                return reply
        except FlatshareError as error:
            status = faults.v2_fault(error).status
            raise
        except asyncio.CancelledError:
            status = _CALLER_LEFT
            raise
        finally:
            outcome = Outcome(_UNKNOWN_ENDPOINT if call is None else call.endpoint, status, seconds(), call, answer)
            asyncio.get_running_loop().call_soon(self._invoker.settle, outcome)  # once the answer is on its way

    async def require_model(self, visitor: Visitor, name: str, version: str) -> None:
        """Raises why an inference would not be answered now. Loads the model, as an inference would."""
        await self._describe(visitor, name, version)

    async def metadata(self, visitor: Visitor, name: str, version: str) -> dict[str, Any]:
        return v2_http.metadata(name, await self._describe(visitor, name, version))

    async def config(self, visitor: Visitor, name: str, version: str) -> dict[str, Any]:
        return v2_http.config(name, await self._describe(visitor, name, version))

    async def statistics(self, visitor: Visitor, name: str, version: str) -> dict[str, Any]:
        """Of one model, or of all that were asked if the name is empty."""
        if not name:
            visitor.require_overview()
            return {"model_stats": [_counts(f"{each.endpoint}/{each.target}", each) for each in self._invoker.statistics]}
        model = await self._model(visitor, name)
        await self._ask(visitor, model, "/metadata" if version else "/artifact", version)
        return {"model_stats": [_counts(name, each) for each in self._invoker.statistics.of(model.endpoint, model.target, version)]}

    async def index(self, visitor: Visitor, *, is_ready_only: bool) -> list[dict[str, Any]]:
        """The versions in memory, and those that were asked for since the start. Any other is loaded when it is asked for."""
        visitor.require_overview()
        resident = set[tuple[str, str]]()
        for instance in await self._status.gather():
            for model in instance.get("models", ()):
                name = self._names.name_of(model["uri"], EndpointName(instance["endpoint"]))
                resident.update((name, version) for version in model["versions"] if name is not None)
        asked = set() if is_ready_only else {(f"{each.endpoint}/{each.target}", each.version) for each in self._invoker.statistics}
        return [_indexed(*known, is_resident=known in resident) for known in sorted(resident | asked)]

    async def load(self, visitor: Visitor, name: str, parameters: Mapping[str, Any]) -> None:
        """Bring a model into memory ahead of its first call."""
        if parameters:
            raise Unsupported("a model is loaded as its artifact says: a configuration or files in the request are not supported")
        await self._ask(visitor, await self._model(visitor, name, action=LOAD), "/metadata")

    async def unload(self, visitor: Visitor, name: str) -> None:
        """Its next call loads it again."""
        model = await self._model(visitor, name, action=UNLOAD)
        await self._invoker.unload(model.endpoint, model.target)

    def server(self) -> dict[str, Any]:
        return {"name": "flatshare", "version": __version__, "extensions": list(v2_http.EXTENSIONS)}

    def log_settings(self) -> dict[str, Any]:
        return {"log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default"}

    def trace_settings(self) -> dict[str, Any]:
        return {"trace_level": ["OFF"], "trace_rate": ["0"], "trace_count": ["0"], "log_frequency": ["0"], "trace_file": [""]}

    async def _model(self, visitor: Visitor, name: str, *, action: str = asks.INVOKE) -> ModelName:
        """The model of this name, which the visitor may use so."""
        model = await self._names.resolve(name, visitor)
        visitor.require(action, model.endpoint, model.target)
        return model

    async def _describe(self, visitor: Visitor, name: str, version: str) -> ModelMetadata:
        reply = await self._ask(visitor, await self._model(visitor, name), "/metadata", version)
        return container.parse_metadata(reply.body)

    async def _ask(self, visitor: Visitor, model: ModelName, action: str, version: str = "") -> Reply:
        with self._invoker.admitted():
            call = ModelCall(model.endpoint, model.target, visitor.request_id, headers=_version(version), method="GET", action=action)
            return _successful(await self._invoker.ask(call))


def _version(version: str) -> tuple[tuple[bytes, bytes], ...]:
    """Whether there is such a version is known where the model is."""
    return ((container.MODEL_VERSION.encode(), version.encode()),) if version else ()


def _successful(answer: Answer) -> Reply:
    if answer.reply.status >= 300:
        raise container.error_in(answer.reply)
    return answer.reply


def _indexed(name: str, version: str, *, is_resident: bool) -> dict[str, Any]:
    state, reason = ("READY", "") if is_resident else ("UNAVAILABLE", "not in memory: loaded when it is asked for")
    return {"name": name, "version": version, "state": state, "reason": reason}


def _counts(name: str, counted: CountedVersion) -> dict[str, Any]:
    """A call is one execution; the engine's part is not divided into input, inference and output."""
    none, counts = Duration(), counted.counts
    durations = {"success": counts.success, "fail": counts.fail, "queue": counts.waited, "compute_input": none}
    durations |= {"compute_infer": counts.ran, "compute_output": none, "cache_hit": none, "cache_miss": none}
    return {
        "name": name,
        "version": counted.version,
        "last_inference": counts.last_wall_ms,
        "inference_count": counts.success.count,
        "execution_count": counts.success.count,
        "inference_stats": {key: {"count": value.count, "ns": value.ns} for key, value in durations.items()},
        "batch_stats": [],
    }
