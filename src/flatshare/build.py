"""The only file that knows everybody: settings become objects, and objects one running server."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from flatshare.control.drivers.local import LocalDriver
from flatshare.control.plane import Control
from flatshare.core.clock import SystemClock
from flatshare.core.settings import ControlSettings, FleetSettings, GatewaySettings, SecuritySettings
from flatshare.gateway.app import FrontDoor
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.gateway.status import FleetStatus
from flatshare.security.audit import AuditLog
from flatshare.security.entry import Entry
from flatshare.security.guard import Auth, Guard
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.serving.tls import Certificate
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics

log = get_logger("server")
KEYS_FILE = "keys.json"
AUDIT_DIR = "audit"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The whole tree; each component is given its own branch."""

    gateway: GatewaySettings
    control: ControlSettings
    fleet: FleetSettings
    security: SecuritySettings


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What an operator chose: the options of `flatshare serve`, by their names there."""

    data_dir: Path
    host: str
    port: int
    memory_bytes: int
    disk_bytes: int
    workers: int
    max_instances: int
    database_url: str | None
    region: str
    auth: str
    tls_cert: Path | None
    tls_key: Path | None
    json_logs: bool

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"


def settings_for(options: ServeOptions) -> ServerSettings:
    """Everything below one folder: the database (unless it is elsewhere), the tensor store, keys, the audit log, the instances' logs."""
    folder = options.data_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return ServerSettings(
        gateway=GatewaySettings(host=options.host, port=options.port),
        control=ControlSettings(database_url=options.database_url or f"sqlite:///{folder / 'control.db'}", region=options.region),
        fleet=FleetSettings(
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
            workers=options.workers,
            max_instances=options.max_instances,
            has_json_logs=options.json_logs,
            store_dir=folder / "store",
            log_dir=folder / "log",
        ),
        security=SecuritySettings(options.auth, folder / KEYS_FILE, folder / AUDIT_DIR, options.tls_cert, options.tls_key),
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
    certificate = _certificate(settings.security)
    entry = _entry(settings, metrics)
    control = Control(settings.control, settings.fleet, driver=LocalDriver(settings.fleet), clock=SystemClock(), publish=routes.replace)
    shadows = Shadows(routes, ShadowMetrics(metrics.registry), timeout_s=settings.gateway.hold_s)
    invoker = Invoker(settings.gateway, routes, metrics, shadows, region=settings.control.region, account=settings.control.account)
    door = FrontDoor(invoker, control.handle, FleetStatus(routes, shadows), metrics, entry)
    gateway = settings.gateway
    server = HandlerServer(door.handle, Bounds(max_body_bytes=gateway.max_body_bytes), drain_s=gateway.drain_s)
    stop_on_signals(server.stop)
    store = await asyncio.to_thread(_repaired_store, settings.fleet.store_dir)
    metrics.disk_bytes.set_function(store.catalog.disk_bytes)
    metrics.disk_limit_bytes.set(settings.fleet.disk_bytes)
    tls = None if certificate is None else certificate.context
    port = await server.listen_on_port(gateway.host, gateway.port, tls)  # before anything is started that would have to be stopped
    try:
        await control.start()
        log.info("server_listens", host=gateway.host, port=port, auth=entry.guard.auth.value, tls=tls is not None)
        settle_memory()
        on_ready(port)
        await server.run()
    finally:
        await shadows.close()
        await control.close()
        routes.close()
        entry.close()


def _entry(settings: ServerSettings, metrics: GatewayMetrics) -> Entry:
    """The one that all roads lead through. Raises BadInput for a file of keys that cannot be used."""
    clock, control = SystemClock(), settings.control
    limit = settings.gateway.max_body_bytes
    guard = Guard(settings.security, clock, region=control.region, account=control.account, max_body_bytes=limit)
    if guard.auth is not Auth.NONE and guard.key_count == 0:
        log.warning("no_access_keys", consequence="nobody may call", remedy="flatshare keys create NAME --admin")
    return Entry(guard, AuditLog(settings.security.audit_dir), metrics, clock)


def _certificate(settings: SecuritySettings) -> Certificate | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate = Certificate(settings.tls_cert, settings.tls_key)
    certificate.reload_on_hangup()
    return certificate


def _repaired_store(folder: Path) -> TensorStore:
    """Before any instance reads it: what an import that was killed has left goes, and models that lost their files are imported anew."""
    store = TensorStore(folder)
    report = store.repair()
    if report.removed_files or report.dropped_models:
        log.warning("store_repaired", removed_files=len(report.removed_files), dropped_models=len(report.dropped_models))
    return store
