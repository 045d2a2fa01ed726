"""Step 1 of a request's path: the front door. One port for the runtime, Open Inference, the control plane, metrics and health."""

from collections.abc import Awaitable, Callable

import orjson

from flatshare.core.errors import BadInput, FlatshareError
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.doors.v2_http import LIVE, V2HttpDoor
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.status import FleetStatus
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.wire import sagemaker
from flatshare.wire.http import Handler, Reply, Request

log = get_logger("gateway")
_PROBES = {"/ping", LIVE, "/v2/health/ready"}  # answered while the server starts; all else waits until it has
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class FrontDoor:
    """Decides by path and target header who answers. `control` is the control plane's handler."""

    def __init__(
        self,
        runtime: SageMakerDoor,
        open_inference: V2HttpDoor,
        control: Handler,
        status: FleetStatus,
        metrics: GatewayMetrics,
        readiness: Readiness,
    ) -> None:
        self._runtime = runtime
        self._open_inference = open_inference
        self._control = control
        self._readiness = readiness
        self._status = status
        self._metrics = metrics
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
        if request.path not in _PROBES:
            await self._readiness.until_started()
        if request.path.startswith("/v2"):
            return await self._open_inference.handle(request)
        invocation = sagemaker.parse_invocation(request)
        if invocation is not None:
            return await self._runtime.invoke(invocation)
        if request.method == "POST" and request.path == "/":
            return await self._control(request)
        if request.method == "GET" and request.path in self._fixed:
            return await self._fixed[request.path]()
        return _not_served(request)

    async def _ping(self) -> Reply:
        self._readiness.require()
        return Reply(200, b'{"status":"ok"}')

    async def _render_metrics(self) -> Reply:
        return Reply(200, self._metrics.render(await self._status.readings()), _METRICS_TYPE)

    async def _render_status(self) -> Reply:
        return Reply(200, orjson.dumps({"instances": await self._status.gather()}))


def _not_served(request: Request) -> Reply:
    error = BadInput(f"{request.method} {request.path} is not served here: see /ping, /metrics, /flatshare/status, /v2 and SageMaker's API")
    reply = sagemaker.error_reply(error, "-")
    reply.status = 404
    return reply
