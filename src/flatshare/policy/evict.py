"""Which models leave memory: those that are worth least per byte that would really come free, or those used least recently.

Never one that is lent out, pinned, or below what its tenant was promised.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from flatshare.core.ids import NOBODY, ModelKey, Tenant, TensorDigest

Name = TypeVar("Name", bound=str)


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
    is_pinned: bool = False
    is_scratch: bool = False
    """In the scratch slot: it was worth less than what it would have pushed out, and goes before models that are not."""
    is_copy: bool = False
    """A prepacked copy of a model that is here: it goes before any model."""


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
    floors: Mapping[Tenant, int] = field(default_factory=dict)
    """Bytes by tenant that nobody else can push out."""
    requester: Tenant | None = None
    """For whom room is made: its own floor does not protect it from itself."""

    def is_spared(self, resident: Resident) -> bool:
        return resident.leases > 0 or resident.is_pinned


PLAIN = Manners()


def ranked(residents: Iterable[Resident], holders: Holders, manners: Manners = PLAIN) -> list[Resident]:
    """Those that may leave, in the order in which they would."""
    candidates = [(_rank(resident, holders, manners), resident) for resident in residents if not manners.is_spared(resident)]
    return [resident for _, resident in sorted(candidates, key=lambda pair: pair[0])]


def choose(residents: Iterable[Resident], holders: Holders, shortage: Shortage, manners: Manners = PLAIN) -> tuple[ModelKey, ...] | None:
    """A whole set of victims that ends the shortage, or None if all that may leave together would not.

    What is held together comes free with its last holder, which may be a later victim. By value, nobody leaves whom a later victim makes
    needless: one large model instead of it and a small one.
    """
    everyone = tuple(residents)
    left, floors, victims = _Left(holders), _Floors(everyone, manners), list[Resident]()
    for resident in ranked(everyone, holders, manners):
        if shortage.is_over:
            break
        if not floors.allow(resident):
            continue
        shortage = left.without(resident, shortage)
        victims.append(resident)
    if not shortage.is_over:
        return None
    needless = _needless(victims, left, shortage) if manners.order is Order.VALUE else frozenset[ModelKey]()
    return tuple(victim.key for victim in victims if victim.key not in needless)


def freed_bytes(resident: Resident, holders: Holders) -> int:
    """What would come free if this model alone left: what others hold too counts nothing."""
    tensors = sum(size for name, size in resident.tensors.items() if holders.tensors.get(name, 0) <= 1)
    shared = sum(size for name, size in resident.shared.items() if holders.shared.get(name, 0) <= 1)
    return resident.anonymous_bytes + tensors + shared


def _rank(resident: Resident, holders: Holders, manners: Manners) -> tuple[bool, bool, float, float]:
    value = resident.worth / max(1, freed_bytes(resident, holders)) if manners.order is Order.VALUE else 0.0
    return (not resident.is_copy, not resident.is_scratch, value, resident.used_s)


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


def _needless(victims: list[Resident], left: "_Left", shortage: Shortage) -> frozenset[ModelKey]:
    """Those without whom the shortage is over too, the most valuable first. `left` and `shortage` are as if all had gone."""
    needless = set[ModelKey]()
    for victim in reversed(victims):
        still = left.with_again(victim, shortage)
        if still.is_over:
            needless.add(victim.key)
            shortage = still
        else:
            left.without(victim, still)
    return frozenset(needless)


class _Left:
    """How many still hold what can be held together, as one victim after the other goes."""

    def __init__(self, holders: Holders) -> None:
        self._tensors, self._shared = dict(holders.tensors), dict(holders.shared)

    def without(self, resident: Resident, shortage: Shortage) -> Shortage:
        """It goes; what is lacking afterwards."""
        anonymous = resident.anonymous_bytes + _moved(resident.shared, self._shared, last=1, by=-1)
        mapped = _moved(resident.tensors, self._tensors, last=1, by=-1)
        return Shortage(shortage.anonymous_bytes - anonymous, shortage.total_bytes - anonymous - mapped)

    def with_again(self, resident: Resident, shortage: Shortage) -> Shortage:
        """It stays after all; what is lacking then."""
        anonymous = resident.anonymous_bytes + _moved(resident.shared, self._shared, last=0, by=1)
        mapped = _moved(resident.tensors, self._tensors, last=0, by=1)
        return Shortage(shortage.anonymous_bytes + anonymous, shortage.total_bytes + anonymous + mapped)


def _moved(held: Mapping[Name, int], left: dict[Name, int], *, last: int, by: int) -> int:
    """Bytes of what had `last` holders, before their number changes by so much."""
    moved = 0
    for name, size in held.items():
        moved += size if left[name] == last else 0
        left[name] += by
    return moved
