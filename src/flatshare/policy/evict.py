"""Which models leave memory: least recently used first, counting only the bytes that would really come free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flatshare.core.ids import ModelKey, TensorDigest

Name = TypeVar("Name", bound=str)


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


def choose(residents: Iterable[Resident], holders: Holders, shortage: Shortage) -> tuple[ModelKey, ...] | None:
    """A whole set of victims that ends the shortage, or None if all idle models together would not.

    What is held together comes free with its last holder, which may be a later victim.
    """
    tensors, shared = dict(holders.tensors), dict(holders.shared)
    victims: list[ModelKey] = []
    for resident in sorted((r for r in residents if r.leases == 0), key=lambda r: r.used_s):
        if shortage.is_over:
            break
        anonymous = resident.anonymous_bytes + _released(resident.shared, shared)
        mapped = _released(resident.tensors, tensors)
        shortage = Shortage(shortage.anonymous_bytes - anonymous, shortage.total_bytes - anonymous - mapped)
        victims.append(resident.key)
    return tuple(victims) if shortage.is_over else None


def _released(held: Mapping[Name, int], left: dict[Name, int]) -> int:
    """Bytes that lose their last holder; `left` keeps the count over the victims so far."""
    freed = 0
    for name, size in held.items():
        left[name] -= 1
        if left[name] == 0:
            freed += size
    return freed
