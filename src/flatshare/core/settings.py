"""What can be set. Each component receives its own section, never the whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flatshare.core.ids import Tenant
from flatshare.core.sizes import MIB

MAX_BODY_BYTES = 6_291_456
"""InvokeEndpoint's limit in botocore's service model."""


REPLACE, KEEP = "replace", "keep"
"""What becomes of a model in memory when another version lies under its key."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The front door."""

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    """None serves no gRPC, 0 takes a free port."""
    max_body_bytes: int = MAX_BODY_BYTES
    max_in_flight: int = 1024
    hold_s: float = 60.0  # a cold request waits so long before 429, as SageMaker holds it
    restart_wait_s: float = 5.0  # a call whose only instance has died waits so long for the next one, then 503
    drain_s: float = 25.0  # SageMaker kills 30 s after SIGTERM


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """Who may call, and where it is written down."""

    auth: str = "none"
    """none · sigv4 · bearer"""
    keys_file: Path = Path("keys.json")
    audit_dir: Path = Path("audit")
    published_code: Path | None = None
    """As in WorkerSettings."""
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Desired state, and the account that the ARNs name."""

    database_url: str = "sqlite://"
    region: str = "us-east-1"
    account: str = "000000000000"
    tick_s: float = 5.0
    is_all_resident: bool = False
    """Deployments whose models would not all stay in memory are refused."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What the instances of this machine may take together."""

    memory_bytes: int = 2048 * MIB
    disk_bytes: int = 50 * 2**30
    """For the tensor store, which the instances share."""
    workers: int = 2
    """Engine threads of each instance."""
    has_json_logs: bool = False
    changed_artifacts: str = REPLACE
    store_dir: Path = Path("store")
    log_dir: Path = Path("log")
    settings_path: Path | None = None
    """The file of settings that every instance reads for itself."""
    max_instances: int = 16
    parallel_starts: int = 4
    """Instances that start at the same time: a start takes a core for some hundredths of a second."""
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one artifact may be, so that none can fill the disk or exhaust the importer."""

    max_unpacked_bytes: int = 20 * 2**30
    max_files: int = 10_000
    max_expansion: float = 200.0  # unpacked ÷ packed; real weights compress by 1.1, text by 10
    max_json_bytes: int = 64 * MIB  # config and tokenizer files


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Section `[memory]`: which models stay in memory."""

    order: Literal["value", "lru"] = "value"
    """Who leaves first: the model that saves its callers the least time per byte, or the one that was used least recently."""
    mode: Literal["overcommitted", "all-resident"] = "overcommitted"
    """All-resident refuses what would push another model out."""
    pinned: tuple[str, ...] = ()
    """Target models that are never evicted; `*` stands for any characters."""
    ttl_s: float | None = None
    """An idle model leaves after so long, also when there is room."""
    scratch_share: float = 0.0
    """Of the memory, with the order "value": kept for models that are worth less than what they would push out."""
    prepacked: Literal["auto", "off"] = "auto"
    """Copies of hot models' weights in the layout of the fastest kernels, in memory that is to spare; auto: if OpenVINO is installed."""
    tenant_pattern: str = r"([^/]+)/"
    """Matched at the begin of a target model; the first group is its tenant."""
    recycle_share: float = 0.25
    """Of the memory: private memory that nobody booked and that does not come back; beyond it the instance is replaced."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Section `[queue]`: who waits, how long, and who comes first."""

    max_waiting: int = 512
    max_waiting_per_tenant: int = 256
    max_waiting_loads: int = 256
    max_waiting_loads_per_tenant: int = 128
    parallel_loads: int = 2
    """From this disk, at once: enough to hide the disk, few enough to leave the cores to requests."""
    deadline_ms: float | None = None
    """For requests that name none."""
    batch_tokens: int = 512
    """Requests of one model share a run up to this many tokens; 0 runs each alone."""
    max_run_s: float = 120.0
    """A run that takes longer hangs: the instance is replaced, since a thread cannot be stopped."""
    long_run_ms: float = 60.0
    """A run that is expected to take longer may not hold the last worker while shorter ones keep coming."""


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """Section `[disk]`: how models come from the store onto this machine's disk."""

    bandwidth_bytes: int | None = None
    """Per second, of all fetches of the machine together; None takes what there is."""
    ahead_share: float = 0.3
    """Of the bandwidth: what fetches that nobody waits for yet may take, and only while nobody waits for another."""
    parallel_fetches: int = 2
    """Of each instance, besides the one ahead."""
    prefetch_every_s: float = 60.0
    """How often to look for a model that is worth bringing onto the disk ahead of its next request."""


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """Section `[tenants.NAME]`; `[tenants.default]` is for those without one."""

    weight: float = 1.0
    """Share of the time of workers and loads, and of the bytes that are fetched, relative to the others."""
    floor_bytes: int = 0
    """What others cannot push out."""
    ceiling_bytes: int | None = None
    """What its models may take together."""
    max_waiting: int | None = None


DEFAULT_TENANT = Tenant("default")


@dataclass(frozen=True, slots=True)
class SharingSettings:
    """What the file of settings holds: how an instance is shared."""

    memory: CacheSettings = field(default_factory=CacheSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    tenants: Mapping[Tenant, TenantSettings] = field(default_factory=dict)
    disk: DiskSettings = field(default_factory=DiskSettings)

    def tenant(self, tenant: Tenant) -> TenantSettings:
        return self.tenants.get(tenant) or self.tenants.get(DEFAULT_TENANT) or TenantSettings()


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """One instance: a share of the machine."""

    store_dir: Path
    memory_bytes: int = 2048 * MIB
    anonymous_share: float = 0.5  # of the memory: what may be private; the rest is for mapped weights
    cache_share: float = 0.125  # of the memory: for keys and values of texts being written, and of sessions; within the private share
    disk_bytes: int = 50 * 2**30
    workers: int = 2
    sharing: SharingSettings = field(default_factory=SharingSettings)
    name: str = ""
    """Endpoint and variant: what is remembered across restarts is remembered by it."""
    patience_s: float = 55.0  # a load waits so long for room; less than the gateway's hold time, so that the reason gets through
    recheck_s: float = 10.0  # how often, at most, a resident model's artifact is looked at again; infinite: never
    drain_s: float = 25.0

    @property
    def cache_bytes(self) -> int:
        return int(self.memory_bytes * self.cache_share)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The processes that run models' own code."""

    most: int = 2
    """Of each code version: how many workers may share its load."""
    load_s: float = 300.0  # SageMaker ends a load after 360 s
    run_s: float = 55.0  # SageMaker gives a container 60 s to answer
    private_bytes: int = 8 * 2**30
    """Of each worker: what asks for more gets a MemoryError."""
    leak_bytes: int = 2**30
    """A worker that has grown by so much since its last load is replaced in a pause."""
    has_spare: bool = True
    """Keep one worker started ahead, its libraries imported."""
    is_tidy: bool = True
    """Gradients off, garbage collected and memory given back by the host."""
    published_code: Path | None = None
    """The file of digests of the code that may run; None lets any run."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where an instance is reached: the Unix socket if there is one, else the port."""

    socket_path: str | None
    host: str
    port: int
    follow_stdin: bool
