"""Which models leave memory: least recently used first, counting only the bytes that would really come free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flatshare.core.ids import ModelKey, TensorDigest


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory, as a policy sees it."""

    key: ModelKey
    used_s: float
    leases: int
    anonymous_bytes: int
    tensors: Mapping[TensorDigest, int]
    """Size in bytes by digest."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is lacking, in bytes; zero or less means that there is enough."""

    anonymous_bytes: int
    mapped_bytes: int

    @property
    def is_over(self) -> bool:
        return self.anonymous_bytes <= 0 and self.mapped_bytes <= 0


def choose(residents: Iterable[Resident], holders: Mapping[TensorDigest, int], shortage: Shortage) -> tuple[ModelKey, ...] | None:
    """A whole set of victims that ends the shortage, or None if all idle models together would not.

    `holders` counts how many residents use each tensor: a tensor comes free with its last holder, which may be a later victim.
    """
    idle = sorted((r for r in residents if r.leases == 0), key=lambda r: r.used_s)
    left = dict[TensorDigest, int]()
    victims: list[ModelKey] = []
    for resident in idle:
        if shortage.is_over:
            break
        freed = _released(resident, holders, left)
        shortage = Shortage(shortage.anonymous_bytes - resident.anonymous_bytes, shortage.mapped_bytes - freed)
        victims.append(resident.key)
    return tuple(victims) if shortage.is_over else None


def _released(resident: Resident, holders: Mapping[TensorDigest, int], left: dict[TensorDigest, int]) -> int:
    """Bytes of the tensors that lose their last holder; `left` keeps the count over the victims so far."""
    freed = 0
    for tensor, size in resident.tensors.items():
        left[tensor] = left.get(tensor, holders[tensor]) - 1
        if left[tensor] == 0:
            freed += size
    return freed
