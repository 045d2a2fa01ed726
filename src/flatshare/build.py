"""The only file that knows everybody: settings become objects, and objects one running server."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from flatshare.control.drivers.local import LocalDriver
from flatshare.control.plane import Control
from flatshare.control.residence import Below
from flatshare.core.clock import SystemClock
from flatshare.core.settings import ControlSettings, FleetSettings, GatewaySettings, SecuritySettings, SharingSettings
from flatshare.core.state import Routes
from flatshare.gateway.app import FrontDoor
from flatshare.gateway.doors.openai import OpenAIDoor
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.doors.v2 import OpenInference
from flatshare.gateway.doors.v2_http import V2HttpDoor
from flatshare.gateway.explain import ModelExplainer
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.names import ModelNames
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.gateway.status import FleetStatus
from flatshare.security.audit import AuditLog
from flatshare.security.entry import Entry
from flatshare.security.guard import Auth, Guard
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.serving.tls import Certificate
from flatshare.store.below import known_below, sizes_below
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics

if TYPE_CHECKING:
    from flatshare.serving.rpc import RpcServer

log = get_logger("server")
DEFAULT_GRPC_PORT = 8001  # as Triton's
KEYS_FILE = "keys.json"
AUDIT_DIR = "audit"
PUBLISHED_FILE = "published-code.json"
PUBLISHED, ANY = "published", "any"
"""Which Python code of models runs."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The whole tree; each component is given its own branch."""

    gateway: GatewaySettings
    control: ControlSettings
    fleet: FleetSettings
    security: SecuritySettings


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens."""

    port: int
    grpc_port: int | None


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What an operator chose: the options of `flatshare serve`, by their names there."""

    data_dir: Path
    host: str
    port: int
    grpc_port: int | None
    no_grpc: bool
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
    changed_artifacts: str
    sharing: tuple[Path, SharingSettings] | None
    model_code: str | None

    @property
    def runs_any_code(self) -> bool:
        """Unless somebody says so, only where nobody is asked who they are."""
        return (self.model_code or (ANY if self.auth == "none" else PUBLISHED)) == ANY

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"

    @property
    def rpc_port(self) -> int | None:
        """Who takes any free port for HTTP, as tests do, gets one for gRPC too."""
        default = DEFAULT_GRPC_PORT if self.port else 0
        return None if self.no_grpc else default if self.grpc_port is None else self.grpc_port


def settings_for(options: ServeOptions) -> ServerSettings:
    """Everything below one folder: the database (unless it is elsewhere), the tensor store, keys, the audit log, the instances' logs."""
    folder = options.data_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return ServerSettings(
        gateway=GatewaySettings(host=options.host, port=options.port, grpc_port=options.rpc_port),
        control=ControlSettings(
            database_url=options.database_url or f"sqlite:///{folder / 'control.db'}",
            region=options.region,
            is_all_resident=options.sharing is not None and options.sharing[1].memory.mode == "all-resident",
        ),
        fleet=FleetSettings(
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
            workers=options.workers,
            max_instances=options.max_instances,
            parallel_starts=max(2, os.cpu_count() or 2),
            has_json_logs=options.json_logs,
            changed_artifacts=options.changed_artifacts,
            store_dir=folder / "store",
            log_dir=folder / "log",
            settings_path=options.sharing[0] if options.sharing else None,
        ),
        security=SecuritySettings(
            options.auth,
            folder / KEYS_FILE,
            folder / AUDIT_DIR,
            published_code=None if options.runs_any_code else folder / PUBLISHED_FILE,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
        ),
    )


def run(settings: ServerSettings, on_ready: Callable[[Listening], None]) -> None:
    """`serve` on an event loop of its own."""
    uvloop.run(serve(settings, on_ready))


async def serve(settings: ServerSettings, on_ready: Callable[[Listening], None]) -> None:
    """Run gateway and control plane until a signal; then answer what is under way and stop the instances.

    `on_ready` is called once calls are answered. Health is answered before that, and all other calls wait for it.
    """
    house = _Gateway(settings)
    control = _control(settings, house)
    servers = _Servers(settings, house, control)
    stop_on_signals(servers.stop)
    listening = await servers.listen()  # before anything is started that would have to be stopped
    running = asyncio.create_task(servers.run())
    try:
        store = await asyncio.to_thread(_repaired_store, settings.fleet.store_dir)
        house.metrics.disk_bytes.set_function(store.catalog.disk_bytes)
        house.metrics.disk_limit_bytes.set(settings.fleet.disk_bytes)
        await control.start()
        house.readiness.start([e.name for e in control.snapshot()], house.routes.routes, give_up_s=settings.fleet.start_timeout_s)
        log.info("server_listens", host=settings.gateway.host, **asdict(listening), **servers.protection)
        settle_memory()
        on_ready(listening)
        await running
    finally:
        servers.stop()
        await running
        await house.routes.versions.close()
        await house.shadows.close()
        await control.close()
        house.routes.close()
        house.entry.close()


class _Gateway:
    """What the doors share."""

    def __init__(self, settings: ServerSettings) -> None:
        gateway = settings.gateway
        self.routes = RouteTable(settings.control.account)
        self.metrics = GatewayMetrics()
        self.readiness = Readiness()
        self.entry = _entry(settings, self.metrics)
        self.shadows = Shadows(self.routes, ShadowMetrics(self.metrics.registry), timeout_s=gateway.hold_s)
        self.status = FleetStatus(self.routes, self.shadows)
        self.invoker = Invoker(gateway, self.routes, self.metrics, self.shadows)

    def publish(self, routes: Routes) -> None:
        """What control calls when an endpoint or an instance came or went."""
        self.routes.replace(routes)
        self.readiness.look(routes)


class _Servers:
    """The doors, behind their ports."""

    def __init__(self, settings: ServerSettings, house: _Gateway, control: Control) -> None:
        self._settings = gateway = settings.gateway
        self._readiness = house.readiness
        self._certificate = _certificate(settings.security)
        self.protection = {"auth": house.entry.guard.auth.value, "tls": self._certificate is not None}
        names = ModelNames(house.routes, house.invoker)
        core = OpenInference(house.invoker, names, house.status, house.metrics, house.readiness, house.entry)
        runtime = SageMakerDoor(house.invoker, house.routes, gateway, region=settings.control.region, account=settings.control.account)
        open_inference = V2HttpDoor(core, gateway)
        open_ai, explainer = OpenAIDoor(house.invoker, house.routes, house.entry, gateway), ModelExplainer(house.routes)
        door = FrontDoor(
            runtime, open_inference, open_ai, control.handle, house.status, house.metrics, house.readiness, house.entry, explainer
        )
        self._http = HandlerServer(door.handle, Bounds(max_body_bytes=gateway.max_body_bytes), drain_s=gateway.drain_s)
        self._rpc = None if gateway.grpc_port is None else _rpc_server(gateway, core)

    async def listen(self) -> Listening:
        """Take the ports. Raises OSError or PortInUse."""
        gateway = self._settings
        port = await self._http.listen_on_port(gateway.host, gateway.port, None if self._certificate is None else self._certificate.context)
        if self._rpc is None or gateway.grpc_port is None:
            return Listening(port, None)
        return Listening(port, await self._rpc.listen_on_port(gateway.host, gateway.grpc_port, self._certificate))

    async def run(self) -> None:
        """Until told to stop, and everybody who was being served has an answer."""
        await asyncio.gather(self._http.run(), *([self._rpc.run()] if self._rpc is not None else []))

    def stop(self) -> None:
        """Begin to drain. May be called more than once."""
        self._readiness.drain()
        self._http.stop()
        if self._rpc is not None:
            self._rpc.stop()


def _rpc_server(gateway: GatewaySettings, core: OpenInference) -> "RpcServer":
    from flatshare.gateway.doors.v2_grpc import V2GrpcDoor  # noqa: PLC0415  # 9 MB that a server without gRPC need not carry
    from flatshare.serving.rpc import RpcServer  # noqa: PLC0415

    services = (V2GrpcDoor(core).service,)
    return RpcServer(services, max_body_bytes=gateway.max_body_bytes, drain_s=gateway.drain_s, max_calls=2 * gateway.max_in_flight)


def _control(settings: ServerSettings, house: _Gateway) -> Control:
    """It fills the table that requests are routed by, and is told by that when a canary fails."""
    fleet = settings.fleet
    listed, known = (partial(below, fleet.store_dir, workers=fleet.workers) for below in (sizes_below, known_below))
    control = Control(
        settings.control,
        fleet,
        driver=LocalDriver(fleet, published_code=settings.security.published_code),
        clock=SystemClock(),
        publish=house.publish,
        publish_releases=house.routes.versions.replace,
        below=Below(listed, known),
    )
    house.routes.versions.end_canary = control.releases.end_canary
    return control


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
