"""Step 2 of 4 on a deployment's path, in all-resident mode: what would not stay in memory is refused before it begins.

the operation, in its transaction ──which prefixes matter?──▶ Unlooked: nothing has happened yet
the look, outside of it, on threads ──summed per prefix──▶ the operation again, which has what it needs
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from flatshare.control.desk import Desk, Residence
from flatshare.core.errors import Abandoned, QuotaExceeded, StoreUnavailable, UnknownTarget, ValidationFailed
from flatshare.core.ids import EndpointName
from flatshare.core.spec import ModelSize
from flatshare.policy.diff import Deployment, DesiredEndpoint, Status
from flatshare.policy.residence import Crew, Holding, Machine, refusal, summed

T = TypeVar("T")
_AT_ONCE = 8
_NOTHING = summed(())

Models = Callable[[str, Callable[[], bool]], Iterable[ModelSize]]
"""The models below a prefix, asked on the caller's thread. Raises Abandoned soon after the second argument answers True."""


@dataclass(frozen=True, slots=True)
class Below:
    """Who says which models lie below a prefix, and how long that may take."""

    listed: Models
    """The store. Raises StoreUnavailable or UnknownTarget."""
    known: Models
    """This machine, by what was imported here: for the prefixes of other endpoints whose store does not answer."""
    look_s: float = 30.0  # more than a dead store's retries take (store/remote.py), less than boto3 waits for an answer
    others_s: float = 5.0


class Unlooked(Exception):
    """The operation cannot be decided before these prefixes were looked at. Its transaction did nothing."""

    def __init__(self, own: frozenset[str], others: frozenset[str]) -> None:
        super().__init__("prefixes were not looked at. Nobody should see this: it is a bug.")
        self.own = own
        """Of the deployment that is being made: they have to answer."""
        self.others = others - own


async def with_residence(operation: Callable[[Residence], Awaitable[T]], below: Below, memory_bytes: int) -> T:
    """The operation's answer, with all looked up that it needs. Raises also StoreUnavailable, or ValidationFailed (no access).

    A round more is needed only if another endpoint with a prefix of its own came while the stores were asked.
    """
    residence = Residence(memory_bytes, {})
    while True:
        try:
            return await operation(residence)
        except Unlooked as unlooked:
            residence = replace(residence, below={**residence.below, **await _looked(unlooked, below)})


def require_residence(desk: Desk, name: EndpointName, target: Deployment) -> None:
    """As with the quota, what is to stay counts: while an update runs, both fleets share the memory, and may lack some."""
    if desk.residence is None:
        return
    before = {endpoint.desired.name: _deployment(endpoint.desired) for endpoint in desk.rows.endpoints()}
    if _fleet(before.get(name)) == _fleet(target):
        return  # other weights, or another configuration of the same: whatever it lacks, it lacks already
    after = before | {name: target}
    own = frozenset(variant.prefix for variant in target.all_variants)
    others = frozenset(variant.prefix for deployment in before.values() if deployment for variant in deployment.all_variants)
    if not own | others <= desk.residence.below.keys():
        raise Unlooked(own - desk.residence.below.keys(), others - desk.residence.below.keys())
    machine = Machine(desk.residence.memory_bytes, desk.max_instances)
    reason = refusal(name, _crews(desk.residence, before), _crews(desk.residence, after), machine)
    if reason is not None:
        raise QuotaExceeded(reason)


async def _looked(unlooked: Unlooked, below: Below) -> Mapping[str, Holding]:
    """On threads of its own: a store that is slow to answer holds up nobody else's."""
    is_late, is_over = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look-below")
    own = {prefix: loop.run_in_executor(threads, _own, below, prefix, is_over) for prefix in sorted(unlooked.own)}
    others = {prefix: loop.run_in_executor(threads, _other, below, prefix, is_late, is_over) for prefix in sorted(unlooked.others)}
    lateness = loop.call_later(below.others_s, is_late.set)
    try:
        await asyncio.wait([*own.values(), *others.values()], timeout=below.look_s)
        found = {prefix: await answer if answer.done() else _NOTHING for prefix, answer in others.items()}
        return found | await _answers(own, below.look_s)
    finally:
        lateness.cancel()
        is_over.set()
        for answer in (*own.values(), *others.values()):
            answer.cancel()
        threads.shutdown(wait=False, cancel_futures=True)


async def _answers(own: Mapping[str, asyncio.Future[Holding]], look_s: float) -> dict[str, Holding]:
    """Raises what was met at the first prefix that did not answer."""
    await asyncio.gather(*(answer for answer in own.values() if answer.done()), return_exceptions=True)
    for prefix, answer in own.items():
        if not answer.done():
            raise StoreUnavailable(f"The models below '{prefix}' could not be listed within {look_s:.0f} s: call again.")
    try:
        return {prefix: await answer for prefix, answer in own.items()}
    except UnknownTarget as error:
        raise ValidationFailed(f"All-resident mode looks first which models there are: {error}") from error


def _own(below: Below, prefix: str, is_over: threading.Event) -> Holding:
    return summed(below.listed(prefix, is_over.is_set))


def _other(below: Below, prefix: str, is_late: threading.Event, is_over: threading.Event) -> Holding:
    """Another endpoint's: its dead or denied store is no reason to refuse this one, nor anything to tell this one's caller."""
    if is_late.is_set():  # it has waited behind others that are out of reach
        return summed(below.known(prefix, is_over.is_set))
    try:
        return summed(below.listed(prefix, lambda: is_late.is_set() or is_over.is_set()))
    except (StoreUnavailable, UnknownTarget, Abandoned):
        return summed(below.known(prefix, is_over.is_set))


def _deployment(endpoint: DesiredEndpoint) -> Deployment | None:
    """What it is to be; None if it has no instances."""
    return None if endpoint.status in {Status.FAILED, Status.DELETING} else endpoint.target or endpoint.active


def _fleet(deployment: Deployment | None) -> frozenset[object]:
    """What of a deployment decides how much memory it needs."""
    variants = deployment.all_variants if deployment else ()
    return frozenset((variant.name, variant.count, variant.prefix) for variant in variants)


def _crews(residence: Residence, deployments: Mapping[EndpointName, Deployment | None]) -> tuple[Crew, ...]:
    return tuple(
        Crew(name, variant.name, variant.count, residence.below[variant.prefix])
        for name, deployment in deployments.items()
        if deployment is not None
        for variant in deployment.all_variants
    )
