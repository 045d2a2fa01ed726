"""Step 1 of a request's path: the front door. One port for the runtime, Open Inference, the control plane, metrics and health.

Whoever comes in gets a request id, which every answer and every line of the logs carries, and is asked who it is; only health is open.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from flatshare.core.access import Ask
from flatshare.core.errors import BadInput, FlatshareError
from flatshare.gateway.doors import openai
from flatshare.gateway.doors.openai import OpenAIDoor
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.doors.v2_http import LIVE, READY, V2HttpDoor
from flatshare.gateway.explain import ModelExplainer
from flatshare.gateway.invoke import request_ids
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.status import FleetStatus
from flatshare.security.entry import Entry
from flatshare.security.guard import ANYBODY, Road
from flatshare.telemetry.log import CURRENT_REQUEST, get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.wire import asks, aws_json, sagemaker
from flatshare.wire.faults import control_fault
from flatshare.wire.http import CALLER, REQUEST_ID, Handler, Reply, Request

log = get_logger("gateway")
_PROBES = {"/ping", LIVE, READY}  # answered while the server starts; all else waits until it has
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_RUNTIME = Road()
_CHANGE = Road(is_mutation=True)
_OURS = Road(is_aws=False)


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A path of our own, and what one must be allowed to do to see it; None: nothing."""

    answer: Callable[[], Awaitable[Reply]]
    action: str | None


class FrontDoor:
    """Decides by path and target header who answers. `control` is the control plane's handler."""

    def __init__(
        self,
        runtime: SageMakerDoor,
        open_inference: V2HttpDoor,
        open_ai: OpenAIDoor,
        control: Handler,
        status: FleetStatus,
        metrics: GatewayMetrics,
        readiness: Readiness,
        entry: Entry,
        explainer: ModelExplainer,
    ) -> None:
        self._runtime = runtime
        self._open_inference = open_inference
        self._open_ai = open_ai
        self._control = control
        self._readiness = readiness
        self._status = status
        self._metrics = metrics
        self._entry = entry
        self._explainer = explainer
        self._request_ids = request_ids()
        self._fixed = {
            "/ping": _Fixed(self._ping, None),
            "/metrics": _Fixed(self._render_metrics, "flatshare:GetMetrics"),
            "/flatshare/status": _Fixed(self._render_status, "flatshare:GetStatus"),
        }

    async def handle(self, request: Request) -> Reply:
        """Every request gets an answer, also when there is a bug."""
        request.id = next(self._request_ids)
        CURRENT_REQUEST.set(request.id)
        try:
            if not self._readiness.has_started and request.path not in _PROBES:
                await self._readiness.until_started()
            reply = await self._route(request)
        except FlatshareError as error:
            reply = _refusal(request, error)
        except Exception:
            log.exception("request_failed", path=request.path)
            reply = Reply(
                500,
                orjson.dumps({"Message": f"an internal error: look for request {request.id} in the server's log"}),
                headers=[(b"x-amzn-errortype", b"InternalFailure")],
            )
        return self._stamped(reply, request)

    def _route(self, request: Request) -> Awaitable[Reply]:
        if request.path == "/v2" or request.path.startswith("/v2/"):
            return self._open_inference.handle(request)
        if request.path.startswith(openai.PREFIX):
            return self._open_ai.handle(request)
        invocation = sagemaker.parse_invocation(request)
        if invocation is not None:
            if not self._entry.guard.is_open:
                self._entry.admit(request, _RUNTIME, asks.of_invocation(invocation))
            return self._runtime.invoke(invocation)
        if request.method == "POST" and request.path == "/":
            return self._control_call(request)
        return self._own_page(request)

    async def _own_page(self, request: Request) -> Reply:
        if request.method == "GET" and request.path == "/flatshare/explain":
            self._entry.admit(request, _OURS, Ask("flatshare:GetStatus"))
            return await self._explainer.explain(request)
        fixed = self._fixed.get(request.path) if request.method == "GET" else None
        if fixed is None:
            return _not_served(request)
        if fixed.action is not None:
            self._entry.admit(request, _OURS, Ask(fixed.action))
        return await fixed.answer()

    async def _control_call(self, request: Request) -> Reply:
        ask, is_mutation = asks.of_control_call(request), asks.is_mutation(request)
        principal = self._entry.admit(request, _CHANGE if is_mutation else _RUNTIME, ask)
        request.headers[CALLER.encode()] = b"" if principal is ANYBODY else principal.name.encode()
        reply = await self._control(request)
        if is_mutation:
            self._entry.record(request, principal, ask, reply)
        return reply

    def _stamped(self, reply: Reply, request: Request) -> Reply:
        """With the request's id, and counted if it is an error."""
        has_id = False
        for name, value in reply.headers:
            if name == b"x-amzn-errortype":
                self._metrics.failed(value.decode())
            has_id = has_id or name == REQUEST_ID
        if not has_id:
            reply.headers.append((REQUEST_ID, request.id.encode()))
        return reply

    async def _ping(self) -> Reply:
        self._readiness.require()
        return Reply(200, b'{"status":"ok"}')

    async def _render_metrics(self) -> Reply:
        return Reply(200, self._metrics.render(await self._status.readings(), self._status.endpoints()), _METRICS_TYPE)

    async def _render_status(self) -> Reply:
        return Reply(200, orjson.dumps(await self._status.report()))


def _refusal(request: Request, error: FlatshareError) -> Reply:
    """In the form of the road that was taken."""
    if request.method == "POST" and request.path == "/":
        fault = control_fault(error)
        return aws_json.error_reply(fault.status, fault.code, str(error), request_id=request.id)
    return sagemaker.error_reply(error, request.id)


def _not_served(request: Request) -> Reply:
    error = BadInput(f"{request.method} {request.path} is not served here: see /ping, /metrics, /flatshare/status, /v2 and SageMaker's API")
    reply = sagemaker.error_reply(error, request.id)
    reply.status = 404
    return reply
