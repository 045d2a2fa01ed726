"""What to do so that the instances that run become those that are wanted: the reconciler's decision.

    CreateEndpoint  Creating ──ready──► InService            ──start failed──► Failed
    UpdateEndpoint  Updating ──ready──► InService (target)   ──start failed──► RollingBack ──► InService (as before, with the reason)
    restart         Updating ──ready──► InService            ──start failed──► OutOfService ──ready──► InService
                    (OutOfService may be updated and deleted, which Updating may not: no endpoint is ever stuck)
    DeleteEndpoint  Deleting ──no instance left──► gone

An endpoint runs its `active` deployment and, while it changes, its `target` too. A change of configuration has a deployment id
of its own, so all of its instances are new (blue/green); a change of weights or counts keeps the id, hence the instances.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any, NewType

from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute

DeploymentId = NewType("DeploymentId", str)
_STABLE_AFTER_S = 60.0  # an instance that lived so long did not crash because of how it was started
_MAX_DELAY_S = 60.0


class Status(StrEnum):
    """EndpointStatus, as far as we use it."""

    CREATING = "Creating"
    UPDATING = "Updating"
    ROLLING_BACK = "RollingBack"
    IN_SERVICE = "InService"
    OUT_OF_SERVICE = "OutOfService"
    DELETING = "Deleting"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Variant:
    """One production or shadow variant, resolved: what its configuration and its model said when it was deployed."""

    name: VariantName
    count: int
    weight: float
    prefix: str
    model_name: str = ""
    image: str | None = None
    instance_type: str = ""
    routing_strategy: str | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    id: DeploymentId
    config_name: str
    variants: tuple[Variant, ...]
    shadows: tuple[Variant, ...] = ()
    """They get copies of requests, and nobody hears their answers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What DescribeEndpoint repeats of the configuration, which may have been deleted by then."""

    @property
    def all_variants(self) -> tuple[Variant, ...]:
        return self.variants + self.shadows

    @property
    def instance_count(self) -> int:
        return sum(variant.count for variant in self.all_variants)


@dataclass(frozen=True, slots=True)
class DesiredEndpoint:
    name: EndpointName
    revision: int
    """Grows with every edit, so that a verdict on an older one is not carried out."""
    status: Status
    active: Deployment | None = None
    target: Deployment | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """What an instance was started for."""

    endpoint: EndpointName
    deployment: DeploymentId
    variant: VariantName


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ObservedInstance:
    id: InstanceId
    slot: Slot
    phase: Phase
    socket_path: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What last went wrong in a slot: a crash, or a start that failed."""

    slot: Slot
    failures: int
    """In a row: an instance that stayed up for a while ends the row."""
    last_s: float
    revision: int
    """The endpoint's, when the instance was started."""
    start_failure: str | None = None

    @property
    def retry_at_s(self) -> float:
        delay_s = 0.0 if self.failures <= 1 else min(_MAX_DELAY_S, 2.0 ** min(self.failures - 2, 16))
        return self.last_s + delay_s


@dataclass(frozen=True, slots=True)
class Observed:
    instances: tuple[ObservedInstance, ...]
    troubles: tuple[Trouble, ...] = ()


class Verdict(Enum):
    SETTLED = "everything wanted answers: InService"
    ROLLING_BACK = "the change failed: what was started for it is stopped"
    ROLLED_BACK = "the change is undone: InService as before"
    NEVER_STARTED = "nothing to fall back to: Failed"
    OUT_OF_SERVICE = "its instances cannot be brought back yet"
    GONE = "deleted, and its last instance has stopped"


@dataclass(frozen=True, slots=True)
class Mark:
    """A change of an endpoint's status, valid for one revision of it."""

    endpoint: EndpointName
    revision: int
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    slot: Slot
    revision: int


@dataclass(frozen=True, slots=True)
class Plan:
    """To be carried out in this order."""

    routes: Routes
    marks: tuple[Mark, ...]
    stops: tuple[InstanceId, ...]
    starts: tuple[Start, ...]
    retry_at_s: float | None
    """When to look again, if a start waits for its delay to pass."""


def plan(desired: tuple[DesiredEndpoint, ...], observed: Observed, *, now_s: float) -> Plan:
    """Routes, starts and stops are those of the moment after the marks."""
    marks = tuple(mark for endpoint in desired if (mark := _mark(endpoint, observed)))
    verdicts = {mark.endpoint: mark.verdict for mark in marks}
    after = tuple(kept for endpoint in desired if (kept := _kept(endpoint, verdicts)))
    wanted = {slot: _Wanted(count, endpoint.revision) for endpoint in after for slot, count in wanted_counts(endpoint).items()}
    stops = _stops(wanted, observed)
    missing = {slot: want.count - len(_running(observed, slot)) for slot, want in wanted.items()}
    retry_at_s = {trouble.slot: trouble.retry_at_s for trouble in observed.troubles}
    delayed = {slot for slot, count in missing.items() if count > 0 and retry_at_s.get(slot, now_s) > now_s}
    starts = tuple(Start(slot, wanted[slot].revision) for slot, count in missing.items() for _ in range(count) if slot not in delayed)
    return Plan(
        routes=_routes(after, observed, excluded=frozenset(stops)),
        marks=marks,
        stops=stops,
        starts=starts,
        retry_at_s=min((retry_at_s[slot] for slot in delayed), default=None),
    )


def judged(endpoint: DesiredEndpoint, verdict: Verdict) -> DesiredEndpoint | None:
    """The endpoint after a verdict on it; nothing if it is gone."""
    match verdict:
        case Verdict.SETTLED:
            return replace(endpoint, status=Status.IN_SERVICE, active=endpoint.target or endpoint.active, target=None)
        case Verdict.ROLLING_BACK:
            return replace(endpoint, status=Status.ROLLING_BACK, target=None)
        case Verdict.ROLLED_BACK:
            return replace(endpoint, status=Status.IN_SERVICE)
        case Verdict.NEVER_STARTED:
            return replace(endpoint, status=Status.FAILED)
        case Verdict.OUT_OF_SERVICE:
            return replace(endpoint, status=Status.OUT_OF_SERVICE, target=None)
        case Verdict.GONE:
            return None


def wanted_counts(endpoint: DesiredEndpoint) -> Mapping[Slot, int]:
    """How many instances each slot should have. A change of counts keeps the larger one until it has settled."""
    if endpoint.status in {Status.FAILED, Status.DELETING}:
        return {}
    counts: dict[Slot, int] = {}
    for deployment in filter(None, (endpoint.active, endpoint.target)):
        for variant in deployment.all_variants:
            slot = Slot(endpoint.name, deployment.id, variant.name)
            counts[slot] = max(counts.get(slot, 0), variant.count)
    return counts


def trouble_after(before: Trouble | None, *, slot: Slot, revision: int, lived_s: float, now_s: float, start_failure: str | None) -> Trouble:
    """The slot's record after an instance ended unasked."""
    in_a_row = 0 if before is None or lived_s >= _STABLE_AFTER_S else before.failures
    return Trouble(slot, in_a_row + 1, now_s, revision, start_failure)


def _mark(endpoint: DesiredEndpoint, observed: Observed) -> Mark | None:
    verdict: Verdict | None = None
    reason = ""
    if endpoint.status is Status.DELETING:
        has_instances = any(instance.slot.endpoint == endpoint.name for instance in observed.instances)
        verdict = None if has_instances else Verdict.GONE
    elif endpoint.status is Status.ROLLING_BACK:
        verdict = None if _has_surplus(endpoint, observed) else Verdict.ROLLED_BACK
    elif endpoint.status in {Status.CREATING, Status.UPDATING, Status.OUT_OF_SERVICE}:
        aim = endpoint.target or endpoint.active
        assert aim is not None, f"{endpoint.name} is {endpoint.status} towards nothing. This is a bug."
        reason = _start_failure(endpoint, aim, observed) or ""
        verdict = Verdict.SETTLED if _is_ready(endpoint, aim, observed) else _verdict_on_failure(endpoint, observed) if reason else None
    return Mark(endpoint.name, endpoint.revision, verdict, reason) if verdict else None


def _verdict_on_failure(endpoint: DesiredEndpoint, observed: Observed) -> Verdict | None:
    active = endpoint.active
    if active is None:
        return Verdict.NEVER_STARTED
    is_serving = any(_ready(observed, Slot(endpoint.name, active.id, variant.name)) for variant in active.variants)
    if endpoint.target is not None and is_serving:
        return Verdict.ROLLING_BACK
    return Verdict.OUT_OF_SERVICE if endpoint.status is Status.UPDATING else None


def _start_failure(endpoint: DesiredEndpoint, aim: Deployment, observed: Observed) -> str | None:
    """Only of an instance that was started for this revision: an older failure has been judged already."""
    failures = (
        trouble.start_failure
        for trouble in observed.troubles
        if trouble.slot.endpoint == endpoint.name and trouble.slot.deployment == aim.id and trouble.revision == endpoint.revision
    )
    return next((failure for failure in failures if failure), None)


def _is_ready(endpoint: DesiredEndpoint, aim: Deployment, observed: Observed) -> bool:
    return all(len(_ready(observed, Slot(endpoint.name, aim.id, variant.name))) >= variant.count for variant in aim.all_variants)


def _has_surplus(endpoint: DesiredEndpoint, observed: Observed) -> bool:
    """Whether something of a change that failed is still there, be it on its way out."""
    wanted = wanted_counts(endpoint)
    present = Counter(instance.slot for instance in observed.instances if instance.slot.endpoint == endpoint.name)
    return any(count > wanted.get(slot, 0) for slot, count in present.items())


def _kept(endpoint: DesiredEndpoint, verdicts: Mapping[EndpointName, Verdict]) -> DesiredEndpoint | None:
    return judged(endpoint, verdicts[endpoint.name]) if endpoint.name in verdicts else endpoint


@dataclass(frozen=True, slots=True)
class _Wanted:
    count: int
    revision: int


def _stops(wanted: Mapping[Slot, _Wanted], observed: Observed) -> tuple[InstanceId, ...]:
    """All that run beyond the wanted count; those not ready yet first, then the youngest."""
    stops: list[InstanceId] = []
    for slot in dict.fromkeys(instance.slot for instance in observed.instances):
        running = sorted(_running(observed, slot), key=lambda instance: instance.phase is not Phase.READY)  # stable: oldest first
        keep = wanted[slot].count if slot in wanted else 0
        stops += [instance.id for instance in running[keep:]]
    return tuple(stops)


def _running(observed: Observed, slot: Slot) -> list[ObservedInstance]:
    return [instance for instance in observed.instances if instance.slot == slot and instance.phase is not Phase.STOPPING]


def _ready(observed: Observed, slot: Slot) -> list[ObservedInstance]:
    return [instance for instance in observed.instances if instance.slot == slot and instance.phase is Phase.READY]


def _routes(after: tuple[DesiredEndpoint, ...], observed: Observed, *, excluded: frozenset[InstanceId]) -> Routes:
    """Every endpoint with an active deployment, even while none of its instances answers: it exists all the same."""
    served = {Status.IN_SERVICE, Status.UPDATING, Status.ROLLING_BACK, Status.OUT_OF_SERVICE}
    addresses = _addresses(observed, excluded)
    return Routes({e.name: _route(e.name, e.active, addresses) for e in after if e.active and e.status in served})


def _addresses(observed: Observed, excluded: frozenset[InstanceId]) -> Mapping[Slot, tuple[InstanceAddress, ...]]:
    """Where each slot's instances answer."""
    found: dict[Slot, tuple[InstanceAddress, ...]] = {}
    for instance in observed.instances:
        if instance.phase is Phase.READY and instance.id not in excluded:
            found[instance.slot] = (*found.get(instance.slot, ()), InstanceAddress(instance.id, instance.socket_path))
    return found


def _route(name: EndpointName, active: Deployment, addresses: Mapping[Slot, tuple[InstanceAddress, ...]]) -> EndpointRoute:
    def routed(variants: tuple[Variant, ...]) -> tuple[VariantRoute, ...]:
        return tuple(VariantRoute(v.name, v.weight, v.prefix, addresses.get(Slot(name, active.id, v.name), ())) for v in variants)

    return EndpointRoute(name, is_multi_model=True, variants=routed(active.variants), shadows=routed(active.shadows))
