"""What the Open Inference Protocol asks of the server, whether over HTTP or gRPC: the two doors only translate."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flatshare import __version__
from flatshare.core.errors import FlatshareError, UnknownTarget, Unsupported
from flatshare.core.ids import EndpointName
from flatshare.gateway.invoke import Answered, Ask, Invoker, Stopwatch
from flatshare.gateway.names import ModelName, ModelNames
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.statistics import Duration, ModelCounts
from flatshare.gateway.status import FleetStatus
from flatshare.wire import container, faults, v2_http
from flatshare.wire.container import ModelMetadata

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
    request_id: str


class OpenInference:
    """Answers are the protocol's JSON objects; gRPC has messages of the same fields. Raises what goes wrong."""

    def __init__(self, invoker: Invoker, names: ModelNames, status: FleetStatus, readiness: Readiness) -> None:
        self._invoker = invoker
        self._names = names
        self._status = status
        self.readiness = readiness

    def next_request_id(self) -> str:
        return next(self._invoker.request_ids)

    async def infer(self, request: InferRequest) -> Answered:
        """The instance's answer, with a status below 300."""
        watch, answered, status = Stopwatch(), None, 500
        ask: Ask | None = None
        try:
            model = await self._model(request.name, request.version)
            headers = v2_http.instance_headers(request.json_bytes, request.name)
            ask = Ask(model.endpoint, model.target, request.request_id, headers=headers, body=request.body)
            answered = await self._invoker.ask(ask)
            status = answered.reply.status
            return _require_success(answered)
        except FlatshareError as error:
            status = faults.v2_fault(error).status
            raise
        except asyncio.CancelledError:
            status = _CALLER_LEFT
            raise
        finally:
            counted = ask or Ask(EndpointName("unknown"), None, request.request_id)
            settle = partial(self._invoker.settle, counted, status, watch.seconds, answered)
            asyncio.get_running_loop().call_soon(settle)  # once the answer is on its way

    async def require_model(self, name: str, version: str) -> None:
        """Raises why an inference would not be answered now. Loads the model, as an inference would."""
        await self._describe(name, version)

    async def metadata(self, name: str, version: str) -> dict[str, Any]:
        return v2_http.metadata(name, await self._describe(name, version))

    async def config(self, name: str, version: str) -> dict[str, Any]:
        return v2_http.config(name, await self._describe(name, version))

    async def statistics(self, name: str, version: str) -> dict[str, Any]:
        """Of one model, or of all that were asked if the name is empty."""
        if not name:
            return {"model_stats": [_counts(f"{m.endpoint}/{m.target}", m.counts) for m in self._invoker.statistics]}
        model = await self._model(name, version)
        await self._ask(model, "/artifact")
        return {"model_stats": [_counts(name, self._invoker.statistics.of(model.endpoint, model.target))]}

    async def index(self, *, is_ready_only: bool) -> list[dict[str, Any]]:
        """The models in memory, and those that were asked for since the start. Any other is loaded when it is asked for."""
        resident = set[str]()
        for instance in await self._status.gather():
            names = (self._names.name_of(model["uri"], EndpointName(instance["endpoint"])) for model in instance.get("models", ()))
            resident.update(name for name in names if name is not None)
        known = resident if is_ready_only else resident | {f"{m.endpoint}/{m.target}" for m in self._invoker.statistics}
        return [_indexed(name, is_resident=name in resident) for name in sorted(known)]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Bring a model into memory ahead of its first call."""
        if parameters:
            raise Unsupported("a model is loaded as its artifact says: a configuration or files in the request are not supported")
        await self._describe(name, "")

    async def unload(self, name: str) -> None:
        """Its next call loads it again."""
        model = await self._model(name, "")
        await self._invoker.unload(model.endpoint, model.target)

    def server(self) -> dict[str, Any]:
        return {"name": "flatshare", "version": __version__, "extensions": list(v2_http.EXTENSIONS)}

    def log_settings(self) -> dict[str, Any]:
        return {"log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default"}

    def trace_settings(self) -> dict[str, Any]:
        return {"trace_level": ["OFF"], "trace_rate": ["0"], "trace_count": ["0"], "log_frequency": ["0"], "trace_file": [""]}

    async def _model(self, name: str, version: str) -> ModelName:
        model = await self._names.resolve(name)
        if version not in {"", v2_http.VERSION}:
            raise UnknownTarget(f"model '{name[:256]}' has no version '{version[:64]}': it has version {v2_http.VERSION}")
        return model

    async def _describe(self, name: str, version: str) -> ModelMetadata:
        answered = await self._ask(await self._model(name, version), "/metadata")
        return container.parse_metadata(answered.reply.body)

    async def _ask(self, model: ModelName, action: str) -> Answered:
        ask = Ask(model.endpoint, model.target, self.next_request_id(), method="GET", action=action)
        return _require_success(await self._invoker.ask(ask))


def _require_success(answered: Answered) -> Answered:
    if answered.reply.status >= 300:
        raise container.error_in(answered.reply)
    return answered


def _indexed(name: str, *, is_resident: bool) -> dict[str, Any]:
    state, reason = ("READY", "") if is_resident else ("UNAVAILABLE", "not in memory: loaded when it is asked for")
    return {"name": name, "version": v2_http.VERSION, "state": state, "reason": reason}


def _counts(name: str, counts: ModelCounts) -> dict[str, Any]:
    """A call is one execution; the engine's part is not divided into input, inference and output."""
    none = Duration()
    durations = {"success": counts.success, "fail": counts.fail, "queue": counts.waited, "compute_input": none}
    durations |= {"compute_infer": counts.ran, "compute_output": none, "cache_hit": none, "cache_miss": none}
    return {
        "name": name,
        "version": v2_http.VERSION,
        "last_inference": counts.last_wall_ms,
        "inference_count": counts.success.count,
        "execution_count": counts.success.count,
        "inference_stats": {key: {"count": value.count, "ns": value.ns} for key, value in durations.items()},
        "batch_stats": [],
    }
