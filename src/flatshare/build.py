"""The only file that knows everybody: settings become objects, and objects one running server."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from flatshare.control.drivers.local import LocalDriver
from flatshare.control.plane import Control
from flatshare.core.clock import SystemClock
from flatshare.core.settings import ControlSettings, FleetSettings, GatewaySettings
from flatshare.gateway.app import FrontDoor
from flatshare.gateway.explain import ModelExplainer
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.status import FleetStatus
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics

log = get_logger("server")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The whole tree; each component is given its own branch."""

    gateway: GatewaySettings
    control: ControlSettings
    fleet: FleetSettings


def settings_for(
    data_dir: Path,
    *,
    host: str,
    port: int,
    memory_bytes: int,
    disk_bytes: int,
    workers: int,
    has_json_logs: bool,
    region: str,
    settings_path: Path | None = None,
) -> ServerSettings:
    """Everything below one folder: the database, the tensor store, the instances' logs."""
    data_dir.mkdir(parents=True, exist_ok=True)
    return ServerSettings(
        gateway=GatewaySettings(host=host, port=port),
        control=ControlSettings(database_url=f"sqlite:///{data_dir / 'control.db'}", region=region),
        fleet=FleetSettings(
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            workers=workers,
            has_json_logs=has_json_logs,
            store_dir=data_dir / "store",
            log_dir=data_dir / "log",
            settings_path=settings_path,
        ),
    )


def run(settings: ServerSettings, on_ready: Callable[[int], None]) -> None:
    """`serve` on an event loop of its own."""
    uvloop.run(serve(settings, on_ready))


async def serve(settings: ServerSettings, on_ready: Callable[[int], None]) -> None:
    """Run gateway and control plane until a signal; then answer what is under way and stop the instances.

    `on_ready` is called with the port once the server listens.
    """
    routes = RouteTable(settings.control.account)
    metrics = GatewayMetrics()
    control = Control(settings.control, settings.fleet, driver=LocalDriver(settings.fleet), clock=SystemClock(), publish=routes.replace)
    invoker = Invoker(settings.gateway, routes, metrics, region=settings.control.region, account=settings.control.account)
    door = FrontDoor(invoker, control.handle, FleetStatus(routes), metrics, ModelExplainer(routes))
    gateway = settings.gateway
    server = HandlerServer(door.handle, Bounds(max_body_bytes=gateway.max_body_bytes), drain_s=gateway.drain_s)
    stop_on_signals(server.stop)
    await asyncio.to_thread(_repair_store, settings.fleet.store_dir)
    port = await server.listen_on_port(gateway.host, gateway.port)  # before anything is started that would have to be stopped
    try:
        await control.start()
        log.info("server_listens", host=gateway.host, port=port)
        settle_memory()
        on_ready(port)
        await server.run()
    finally:
        await control.close()
        routes.close()


def _repair_store(folder: Path) -> None:
    """Before any instance reads it: what an import that was killed has left goes, and models that lost their files are imported anew."""
    report = TensorStore(folder).repair()
    if report.removed_files or report.dropped_models:
        log.warning("store_repaired", removed_files=len(report.removed_files), dropped_models=len(report.dropped_models))
