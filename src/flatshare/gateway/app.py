"""Step 1 of a request's path: the front door. One port for the runtime, the control plane, metrics and health."""

from collections.abc import Awaitable, Callable

import orjson

from flatshare.core.errors import BadInput, FlatshareError
from flatshare.gateway.explain import ModelExplainer
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.status import FleetStatus
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.wire import sagemaker
from flatshare.wire.http import Handler, Reply, Request

log = get_logger("gateway")
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class FrontDoor:
    """Decides by path and target header who answers. `control` is the control plane's handler."""

    def __init__(self, invoker: Invoker, control: Handler, status: FleetStatus, metrics: GatewayMetrics, explainer: ModelExplainer) -> None:
        self._invoker = invoker
        self._control = control
        self._status = status
        self._metrics = metrics
        self._explainer = explainer
        self._fixed: dict[str, Callable[[], Awaitable[Reply]]] = {
            "/ping": self._ping,
            "/metrics": self._render_metrics,
            "/flatshare/status": self._render_status,
        }

    async def handle(self, request: Request) -> Reply:
        """Every request gets an answer, also when there is a bug."""
        try:
            return await self._route(request)
        except FlatshareError as error:
            return sagemaker.error_reply(error, "-")
        except Exception:
            log.exception("request_failed", path=request.path)
            return Reply(
                500,
                orjson.dumps({"Message": "an internal error, see the server's log"}),
                headers=[(b"x-amzn-errortype", b"InternalFailure")],
            )

    async def _route(self, request: Request) -> Reply:
        invocation = sagemaker.parse_invocation(request)
        if invocation is not None:
            return await self._invoker.invoke(invocation)
        if request.method == "POST" and request.path == "/":
            return await self._control(request)
        if request.method == "GET" and request.path == "/flatshare/explain":
            return await self._explainer.explain(request)
        if request.method == "GET" and request.path in self._fixed:
            return await self._fixed[request.path]()
        return _not_served(request)

    async def _ping(self) -> Reply:
        return Reply(200, b'{"status":"ok"}')

    async def _render_metrics(self) -> Reply:
        return Reply(200, self._metrics.render(await self._status.readings()), _METRICS_TYPE)

    async def _render_status(self) -> Reply:
        return Reply(200, orjson.dumps({"instances": await self._status.gather()}))


def _not_served(request: Request) -> Reply:
    error = BadInput(f"{request.method} {request.path} is not served here: see /ping, /metrics, /flatshare/status and the SageMaker API")
    reply = sagemaker.error_reply(error, "-")
    reply.status = 404
    return reply
