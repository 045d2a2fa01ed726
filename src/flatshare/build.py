"""The only file that knows everybody: settings become objects, and objects one running server."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from flatshare.control.drivers.local import LocalDriver
from flatshare.control.plane import Control
from flatshare.core.clock import SystemClock
from flatshare.core.settings import ControlSettings, FleetSettings, GatewaySettings
from flatshare.core.state import Routes
from flatshare.gateway.app import FrontDoor
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.doors.v2 import OpenInference
from flatshare.gateway.doors.v2_http import V2HttpDoor
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.names import ModelNames
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.status import FleetStatus
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from flatshare.serving.rpc import RpcServer

log = get_logger("server")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The whole tree; each component is given its own branch."""

    gateway: GatewaySettings
    control: ControlSettings
    fleet: FleetSettings


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens."""

    port: int
    grpc_port: int | None


def settings_for(
    data_dir: Path,
    *,
    host: str,
    port: int,
    grpc_port: int | None,
    memory_bytes: int,
    disk_bytes: int,
    workers: int,
    has_json_logs: bool,
    region: str,
) -> ServerSettings:
    """Everything below one folder: the database, the tensor store, the instances' logs."""
    data_dir.mkdir(parents=True, exist_ok=True)
    return ServerSettings(
        gateway=GatewaySettings(host=host, port=port, grpc_port=grpc_port),
        control=ControlSettings(database_url=f"sqlite:///{data_dir / 'control.db'}", region=region),
        fleet=FleetSettings(
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            workers=workers,
            has_json_logs=has_json_logs,
            store_dir=data_dir / "store",
            log_dir=data_dir / "log",
        ),
    )


def run(settings: ServerSettings, on_ready: Callable[[Listening], None]) -> None:
    """`serve` on an event loop of its own."""
    uvloop.run(serve(settings, on_ready))


async def serve(settings: ServerSettings, on_ready: Callable[[Listening], None]) -> None:
    """Run gateway and control plane until a signal; then answer what is under way and stop the instances.

    `on_ready` is called once calls are answered. Health is answered before that, and all other calls wait for it.
    """
    routes, metrics, readiness = RouteTable(settings.control.account), GatewayMetrics(), Readiness()

    def publish(new: Routes) -> None:
        routes.replace(new)
        readiness.look(new)

    control = Control(settings.control, settings.fleet, driver=LocalDriver(settings.fleet), clock=SystemClock(), publish=publish)
    servers = _Servers(settings, routes, metrics, readiness, control)
    stop_on_signals(servers.stop)
    listening = await servers.listen()  # before anything is started that would have to be stopped
    running = asyncio.create_task(servers.run())
    try:
        await asyncio.to_thread(_repair_store, settings.fleet.store_dir)
        await control.start()
        readiness.start([e.name for e in control.snapshot()], routes.routes, give_up_s=settings.fleet.start_timeout_s)
        log.info("server_listens", host=settings.gateway.host, port=listening.port, grpc_port=listening.grpc_port)
        settle_memory()
        on_ready(listening)
        await running
    finally:
        servers.stop()
        await running
        await control.close()
        routes.close()


class _Servers:
    """The doors and what they share, behind their ports."""

    def __init__(
        self, settings: ServerSettings, routes: RouteTable, metrics: GatewayMetrics, readiness: Readiness, control: Control
    ) -> None:
        gateway = self._settings = settings.gateway
        status = FleetStatus(routes)
        invoker = Invoker(gateway, routes, metrics)
        self._core = OpenInference(invoker, ModelNames(routes, invoker), status, readiness)
        runtime = SageMakerDoor(invoker, gateway, region=settings.control.region, account=settings.control.account)
        door = FrontDoor(runtime, V2HttpDoor(self._core, gateway), control.handle, status, metrics, readiness)
        self._readiness = readiness
        self._http = HandlerServer(door.handle, Bounds(max_body_bytes=gateway.max_body_bytes), drain_s=gateway.drain_s)
        self._rpc = self._rpc_server() if gateway.grpc_port is not None else None

    async def listen(self) -> Listening:
        """Take the ports. Raises OSError or PortInUse."""
        gateway = self._settings
        port = await self._http.listen_on_port(gateway.host, gateway.port)
        if self._rpc is None or gateway.grpc_port is None:
            return Listening(port, None)
        return Listening(port, await self._rpc.listen_on_port(gateway.host, gateway.grpc_port))

    async def run(self) -> None:
        await asyncio.gather(self._http.run(), *([self._rpc.run()] if self._rpc is not None else []))

    def stop(self) -> None:
        """Begin to drain. May be called more than once."""
        self._readiness.drain()
        self._http.stop()
        if self._rpc is not None:
            self._rpc.stop()

    def _rpc_server(self) -> "RpcServer":
        from flatshare.gateway.doors.v2_grpc import V2GrpcDoor  # noqa: PLC0415  # 9 MB that a server without gRPC need not carry
        from flatshare.serving.rpc import RpcServer  # noqa: PLC0415

        gateway = self._settings
        services = (V2GrpcDoor(self._core).service,)
        return RpcServer(services, max_body_bytes=gateway.max_body_bytes, drain_s=gateway.drain_s, max_calls=2 * gateway.max_in_flight)


def _repair_store(folder: Path) -> None:
    """Before any instance reads it: what an import that was killed has left goes, and models that lost their files are imported anew."""
    report = TensorStore(folder).repair()
    if report.removed_files or report.dropped_models:
        log.warning("store_repaired", removed_files=len(report.removed_files), dropped_models=len(report.dropped_models))
