"""What to do so that the instances that run become those that are wanted: the reconciler's decision.

    CreateEndpoint  Creating ──ready──► InService            ──start failed──► Failed
    UpdateEndpoint  Updating ──ready──► InService (target)   ──start failed──► RollingBack ──► InService (as before, with the reason)
    restart         Updating ──ready──► InService            ──start failed──► OutOfService ──ready──► InService
                    (OutOfService may be updated and deleted, which Updating may not: no endpoint is ever stuck)
    DeleteEndpoint  Deleting ──no instance left──► gone

    rolling update  RollingBack ──the old fleet does not start──► UpdateRollbackFailed (both serve what they have)

An endpoint runs its `active` deployment and, while it changes, its `target` too. A change of configuration has a deployment id
of its own, so all of its instances are new, and its traffic moves as `rollout.py` says; a change of numbers keeps id and instances.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any, NewType

from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.policy import rollout
from flatshare.policy.rollout import AT_ONCE, NOT_BEGUN, Move, Progress, Rollout

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
    UPDATE_ROLLBACK_FAILED = "UpdateRollbackFailed"


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

    progress: Progress = NOT_BEGUN
    """While it is a target: how much of the traffic it has."""

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
    rollout: Rollout = AT_ONCE
    """How the traffic moves from one to the other."""

    @property
    def is_replaced(self) -> bool:
        """Whether another fleet is to take over, other than by new numbers for the same."""
        return self.active is not None and self.target is not None and self.active.id != self.target.id


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
    SHIFTED = "one more step of the traffic"
    ROLLING_BACK = "the change failed: what was started for it is stopped"
    ROLLED_BACK = "the change is undone: InService as before"
    ROLLBACK_FAILED = "the old fleet does not come back: UpdateRollbackFailed"
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
    at_s: float = 0.0
    """Wall clock: when a step was made."""


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
    """When to look again, if a start waits for its delay to pass, or a step for its wait."""


def plan(desired: tuple[DesiredEndpoint, ...], observed: Observed, *, now_s: float, wall_s: float = 0.0) -> Plan:
    """Routes, starts and stops are those of the moment after the marks."""
    marks = tuple(mark for endpoint in desired if (mark := _mark(endpoint, observed, wall_s)))
    marked = {mark.endpoint: mark for mark in marks}
    after = tuple(kept for endpoint in desired if (kept := _kept(endpoint, marked)))
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
        retry_at_s=min((*(retry_at_s[slot] for slot in delayed), *_steps_due(after, observed, now_s, wall_s)), default=None),
    )


def judged(endpoint: DesiredEndpoint, verdict: Verdict, at_s: float = 0.0) -> DesiredEndpoint | None:
    """The endpoint after a verdict on it; nothing if it is gone."""
    after: DesiredEndpoint | None = None
    match verdict:
        case Verdict.SETTLED:
            settled = endpoint.target or endpoint.active
            after = replace(endpoint, status=Status.IN_SERVICE, active=settled and replace(settled, progress=NOT_BEGUN), target=None)
        case Verdict.SHIFTED:
            assert endpoint.target is not None, "only a target takes over traffic. This is a bug."
            progress = replace(endpoint.target.progress, step=endpoint.target.progress.step + 1, since_s=at_s)
            after = replace(endpoint, target=replace(endpoint.target, progress=progress))
        case Verdict.ROLLING_BACK:
            # Of a rolling update the old fleet has shrunk: the new one serves on until the old one is whole again.
            keeps = endpoint.status is Status.UPDATING and endpoint.rollout.is_rolling and endpoint.is_replaced
            after = replace(endpoint, status=Status.ROLLING_BACK, target=endpoint.target if keeps else None)
        case Verdict.ROLLBACK_FAILED:
            after = replace(endpoint, status=Status.UPDATE_ROLLBACK_FAILED)
        case Verdict.ROLLED_BACK:
            after = replace(endpoint, status=Status.IN_SERVICE)
        case Verdict.NEVER_STARTED:
            after = replace(endpoint, status=Status.FAILED)
        case Verdict.OUT_OF_SERVICE:
            after = replace(endpoint, status=Status.OUT_OF_SERVICE, target=None)
        case Verdict.GONE:
            pass
    return after


def wanted_counts(endpoint: DesiredEndpoint) -> Mapping[Slot, int]:
    """How many instances each slot should have. A change of counts keeps the larger one until it has settled."""
    if endpoint.status in {Status.FAILED, Status.DELETING}:
        return {}
    counts: dict[Slot, int] = {}
    for deployment in filter(None, (endpoint.active, endpoint.target)):
        for variant in deployment.all_variants:
            slot = Slot(endpoint.name, deployment.id, variant.name)
            counts[slot] = max(counts.get(slot, 0), _wanted_count(endpoint, deployment, variant))
    return counts


def _wanted_count(endpoint: DesiredEndpoint, deployment: Deployment, variant: Variant) -> int:
    target = endpoint.target
    if target is None or not endpoint.is_replaced:
        return variant.count
    step = endpoint.rollout, target.progress, target.instance_count
    if deployment is target:
        return rollout.new_count(*step, variant.count)
    return rollout.old_count(*step, variant.count) if endpoint.status is Status.UPDATING else variant.count


def trouble_after(before: Trouble | None, *, slot: Slot, revision: int, lived_s: float, now_s: float, start_failure: str | None) -> Trouble:
    """The slot's record after an instance ended unasked."""
    in_a_row = 0 if before is None or lived_s >= _STABLE_AFTER_S else before.failures
    return Trouble(slot, in_a_row + 1, now_s, revision, start_failure)


def _mark(endpoint: DesiredEndpoint, observed: Observed, wall_s: float) -> Mark | None:
    verdict: Verdict | None = None
    reason = ""
    if endpoint.status is Status.DELETING:
        has_instances = any(instance.slot.endpoint == endpoint.name for instance in observed.instances)
        verdict = None if has_instances else Verdict.GONE
    elif endpoint.status is Status.ROLLING_BACK:
        verdict = _verdict_on_way_back(endpoint, observed)
        if verdict is Verdict.ROLLBACK_FAILED and endpoint.active is not None:
            reason = _start_failure(endpoint, endpoint.active, observed) or ""
    elif endpoint.status in {Status.CREATING, Status.UPDATING, Status.OUT_OF_SERVICE}:
        aim = endpoint.target or endpoint.active
        assert aim is not None, f"{endpoint.name} is {endpoint.status} towards nothing. This is a bug."
        reason = _start_failure(endpoint, aim, observed) or ""
        move = _decision(endpoint, observed, wall_s).move
        if move is Move.TIME_OUT and not reason:
            reason = f"The deployment was not done within its MaximumExecutionTimeoutInSeconds of {endpoint.rollout.timeout_s:g}."
        steps = {Move.SETTLE: Verdict.SETTLED, Move.SHIFT: Verdict.SHIFTED}
        verdict = steps.get(move) or (_verdict_on_failure(endpoint, observed) if reason else None)
    return Mark(endpoint.name, endpoint.revision, verdict, reason, wall_s) if verdict else None


def _decision(endpoint: DesiredEndpoint, observed: Observed, wall_s: float) -> rollout.Decision:
    """How far the endpoint's way to its target, or back into service, may go now."""
    aim = endpoint.target or endpoint.active
    assert aim is not None, f"{endpoint.name} is {endpoint.status} towards nothing. This is a bug."
    chosen = endpoint.rollout if endpoint.is_replaced else AT_ONCE
    return rollout.decide(chosen, aim.progress, aim.instance_count, is_ready=_is_ready(endpoint, aim, observed), now_s=wall_s)


def _steps_due(after: tuple[DesiredEndpoint, ...], observed: Observed, now_s: float, wall_s: float) -> list[float]:
    """When, by the clock of `now_s`, the next steps are due."""
    decisions = [_decision(e, observed, wall_s) for e in after if e.status is Status.UPDATING and e.is_replaced]
    return [now_s + max(0.0, decision.due_s - wall_s) for decision in decisions if decision.due_s is not None]


def _verdict_on_way_back(endpoint: DesiredEndpoint, observed: Observed) -> Verdict | None:
    active = endpoint.active
    if endpoint.target is not None and active is not None:
        if _is_ready(endpoint, active, observed):
            return Verdict.ROLLING_BACK
        return Verdict.ROLLBACK_FAILED if _start_failure(endpoint, active, observed) else None
    return None if _has_surplus(endpoint, observed) else Verdict.ROLLED_BACK


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
    return all(
        len(_ready(observed, Slot(endpoint.name, aim.id, variant.name))) >= _wanted_count(endpoint, aim, variant)
        for variant in aim.all_variants
    )


def _has_surplus(endpoint: DesiredEndpoint, observed: Observed) -> bool:
    """Whether something of a change that failed is still there, be it on its way out."""
    wanted = wanted_counts(endpoint)
    present = Counter(instance.slot for instance in observed.instances if instance.slot.endpoint == endpoint.name)
    return any(count > wanted.get(slot, 0) for slot, count in present.items())


def _kept(endpoint: DesiredEndpoint, marks: Mapping[EndpointName, Mark]) -> DesiredEndpoint | None:
    mark = marks.get(endpoint.name)
    return endpoint if mark is None else judged(endpoint, mark.verdict, mark.at_s)


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
    unserved = {Status.CREATING, Status.FAILED, Status.DELETING}
    addresses = _addresses(observed, excluded)
    return Routes({e.name: _route(e, e.active, addresses) for e in after if e.active and e.status not in unserved})


def _addresses(observed: Observed, excluded: frozenset[InstanceId]) -> Mapping[Slot, tuple[InstanceAddress, ...]]:
    """Where each slot's instances answer."""
    found: dict[Slot, tuple[InstanceAddress, ...]] = {}
    for instance in observed.instances:
        if instance.phase is Phase.READY and instance.id not in excluded:
            found[instance.slot] = (*found.get(instance.slot, ()), InstanceAddress(instance.id, instance.socket_path))
    return found


def _route(endpoint: DesiredEndpoint, active: Deployment, addresses: Mapping[Slot, tuple[InstanceAddress, ...]]) -> EndpointRoute:
    """While the traffic moves, the old and the new variants of a name stand side by side, each with its part of the weight."""

    def routed(deployment: Deployment, variants: tuple[Variant, ...], factor: float) -> tuple[VariantRoute, ...]:
        found = {v.name: addresses.get(Slot(endpoint.name, deployment.id, v.name), ()) for v in variants}
        return tuple(VariantRoute(v.name, v.weight * factor, v.prefix, found[v.name]) for v in variants)

    target = endpoint.target
    moved = rollout.share(endpoint.rollout, target.progress, target.instance_count) if target and endpoint.is_replaced else 0.0
    if target is None or moved in {0.0, 1.0}:
        whole = target if target and moved else active
        return EndpointRoute(endpoint.name, True, routed(whole, whole.variants, 1.0), routed(whole, whole.shadows, 1.0))
    totals = [sum(variant.weight for variant in deployment.variants) or 1.0 for deployment in (active, target)]
    old, new = (1.0 - moved) / totals[0], moved / totals[1]
    variants = (*routed(active, active.variants, old), *routed(target, target.variants, new))
    return EndpointRoute(endpoint.name, True, variants, routed(active, active.shadows, old))
