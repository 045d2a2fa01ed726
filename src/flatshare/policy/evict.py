"""Which models leave memory: those that are worth least per byte that would really come free, or those used least recently.

Never one that is lent out, pinned, hardly loaded yet, or below what its tenant was promised.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from flatshare.core.ids import NOBODY, ModelKey, Tenant, TensorDigest

Name = TypeVar("Name", bound=str)
_RELOADS = 3.0  # a model that leaves sooner than three times its load took has cost more than it gave


class Order(StrEnum):
    VALUE = "value"
    LRU = "lru"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory, as a policy sees it."""

    key: ModelKey
    used_s: float
    leases: int
    anonymous_bytes: int
    """Private memory of this model alone."""
    tensors: Mapping[TensorDigest, int]
    """Size in bytes by digest."""
    shared: Mapping[str, int] = field(default_factory=dict)
    """Private memory that it has in common with others (a session, a tokenizer): size in bytes by name."""
    worth: float = 0.0
    """User-seconds that it saves per second while it is here (policy/worth.py)."""
    tenant: Tenant = NOBODY
    loaded_s: float = float("-inf")
    reload_s: float = 0.0
    """How long a load takes."""
    is_pinned: bool = False
    is_scratch: bool = False
    """In the scratch slot: it was worth less than what it would have pushed out, and goes first."""


@dataclass(frozen=True, slots=True)
class Holders:
    """How many models, resident or on their way in, hold what can be held together."""

    tensors: Mapping[TensorDigest, int]
    shared: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is lacking, in bytes; zero or less means that there is enough."""

    anonymous_bytes: int
    """Of private memory."""
    total_bytes: int
    """Of private memory and mapped weights together."""

    @property
    def is_over(self) -> bool:
        return self.anonymous_bytes <= 0 and self.total_bytes <= 0


@dataclass(frozen=True, slots=True)
class Manners:
    """In which order models leave, and who has to be spared."""

    order: Order = Order.LRU
    now_s: float = 0.0
    min_residency_s: float = 0.0
    """Younger models, and those whose load took a third of their stay or more, leave only if others do not suffice."""
    floors: Mapping[Tenant, int] = field(default_factory=dict)
    """Bytes by tenant that nobody else can push out."""
    requester: Tenant | None = None
    """For whom room is made: its own floor does not protect it from itself."""

    def is_spared(self, resident: Resident) -> bool:
        return resident.leases > 0 or resident.is_pinned

    def is_young(self, resident: Resident) -> bool:
        """It leaves after its elders. No more than that: were it spared, cold requests would wait for its birthday. LRU knows no youth."""
        if self.order is not Order.VALUE:
            return False
        return self.now_s - resident.loaded_s < max(self.min_residency_s, _RELOADS * resident.reload_s)


PLAIN = Manners()


def ranked(residents: Iterable[Resident], holders: Holders, manners: Manners = PLAIN) -> list[Resident]:
    """Those that may leave, in the order in which they would."""
    candidates = [(_rank(resident, holders, manners), resident) for resident in residents if not manners.is_spared(resident)]
    return [resident for _, resident in sorted(candidates, key=lambda pair: pair[0])]


def choose(residents: Iterable[Resident], holders: Holders, shortage: Shortage, manners: Manners = PLAIN) -> tuple[ModelKey, ...] | None:
    """A whole set of victims that ends the shortage, or None if all that may leave together would not.

    What is held together comes free with its last holder, which may be a later victim.
    """
    everyone = tuple(residents)
    tensors, shared = dict(holders.tensors), dict(holders.shared)
    floors = _Floors(everyone, manners)
    victims: list[ModelKey] = []
    for resident in ranked(everyone, holders, manners):
        if shortage.is_over:
            break
        if not floors.allow(resident):
            continue
        anonymous = resident.anonymous_bytes + _released(resident.shared, shared)
        mapped = _released(resident.tensors, tensors)
        shortage = Shortage(shortage.anonymous_bytes - anonymous, shortage.total_bytes - anonymous - mapped)
        victims.append(resident.key)
    return tuple(victims) if shortage.is_over else None


def freed_bytes(resident: Resident, holders: Holders) -> int:
    """What would come free if this model alone left: what others hold too counts nothing."""
    tensors = sum(size for name, size in resident.tensors.items() if holders.tensors.get(name, 0) <= 1)
    shared = sum(size for name, size in resident.shared.items() if holders.shared.get(name, 0) <= 1)
    return resident.anonymous_bytes + tensors + shared


def _rank(resident: Resident, holders: Holders, manners: Manners) -> tuple[bool, bool, float, float]:
    value = resident.worth / max(1, freed_bytes(resident, holders)) if manners.order is Order.VALUE else 0.0
    return (not resident.is_scratch, manners.is_young(resident), value, resident.used_s)


class _Floors:
    """What the tenants with a floor would still hold. A tenant holds each distinct byte of its models once."""

    def __init__(self, residents: tuple[Resident, ...], manners: Manners) -> None:
        self._floors = {tenant: floor for tenant, floor in manners.floors.items() if floor and tenant != manners.requester}
        self._counts: dict[Tenant, Counter[str]] = {tenant: Counter() for tenant in self._floors}
        self._bytes = dict.fromkeys(self._floors, 0)
        for resident in residents:
            if resident.tenant in self._floors:
                counts = self._counts[resident.tenant]
                self._bytes[resident.tenant] += resident.anonymous_bytes
                for name, size in (*resident.tensors.items(), *resident.shared.items()):
                    self._bytes[resident.tenant] += 0 if counts[name] else size
                    counts[name] += 1

    def allow(self, resident: Resident) -> bool:
        """May it leave, floors considered? If so, it is counted as gone."""
        if resident.tenant not in self._floors:
            return True
        counts = self._counts[resident.tenant]
        parts = (*resident.tensors.items(), *resident.shared.items())
        freed = resident.anonymous_bytes + sum(size for name, size in parts if counts[name] == 1)
        if self._bytes[resident.tenant] - freed < self._floors[resident.tenant]:
            return False
        self._bytes[resident.tenant] -= freed
        counts.subtract(name for name, _ in parts)
        return True


def _released(held: Mapping[Name, int], left: dict[Name, int]) -> int:
    """Bytes that lose their last holder; `left` keeps the count over the victims so far."""
    freed = 0
    for name, size in held.items():
        left[name] -= 1
        if left[name] == 0:
            freed += size
    return freed
