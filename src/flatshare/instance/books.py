"""Step 5a: the ledgers. What each resident model has reserved, what is shared, and what the kernel says.

    anonymous   private memory: base + shared (sessions, tokenizers, workspaces; counted once) + each model's own; hard
    mapped      distinct weight bytes of the residents, wherever they lie in packs; soft: the page cache holds them

`imbalances` states the identity that must hold after every step.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.instance.backends.base import Footprint
from flatshare.policy.admit import MemoryView, Rules
from flatshare.policy.evict import Holders, Name, Resident


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one model holds."""

    footprint: Footprint
    tensors: Mapping[TensorDigest, int]
    is_copy: bool = False
    """A prepacked copy's, beside its model's own."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The books at one moment, in bytes."""

    memory_limit: int
    anonymous_limit: int
    base_anonymous: int
    anonymous: int
    mapped: int
    measured_anonymous: int
    models: int
    copies: int = 0
    """Prepacked ones."""
    pressure: int = 0
    """Of the memory limit: not to be used for the moment, since the machine runs short."""


class Books:
    """Owned by the cache: nobody else writes in it."""

    def __init__(
        self, memory_bytes: int, anonymous_share: float, base_anonymous: int, others_anonymous: Callable[[], int] = lambda: 0
    ) -> None:
        """`others_anonymous` is what the instance's other processes have of private memory."""
        self._others_anonymous = others_anonymous
        self._memory_bytes = memory_bytes
        self._anonymous_share = anonymous_share
        self._base_anonymous = base_anonymous
        self._pressure_bytes = 0
        self._reserved: dict[ModelKey, Reservation] = {}
        self._holders: Counter[TensorDigest] = Counter()
        self._sharers: Counter[str] = Counter()
        self._shared_bytes = 0
        self._own_bytes = 0
        self._mapped_bytes = 0

    def reserve(self, key: ModelKey, reservation: Reservation) -> None:
        """Enter what a model will take, before it takes it."""
        assert key not in self._reserved, "reserved twice. This is a bug."
        self._reserved[key] = reservation
        self._own_bytes += reservation.footprint.own_bytes
        for name, size in reservation.footprint.shared.items():
            self._shared_bytes += size if self._sharers[name] == 0 else 0
            self._sharers[name] += 1
        for tensor, size in reservation.tensors.items():
            self._mapped_bytes += size if self._holders[tensor] == 0 else 0
            self._holders[tensor] += 1

    def release(self, key: ModelKey) -> None:
        """Strike out a model that has given back what it took."""
        reservation = self._reserved.pop(key)
        self._own_bytes -= reservation.footprint.own_bytes
        for name, size in reservation.footprint.shared.items():
            self._shared_bytes -= size if _drop(self._sharers, name) else 0
        for tensor, size in reservation.tensors.items():
            self._mapped_bytes -= size if _drop(self._holders, tensor) else 0

    def __contains__(self, key: ModelKey) -> bool:
        """Whether the model has a reservation."""
        return key in self._reserved

    def has_only_known_shares(self, key: ModelKey) -> bool:
        """Whether everything that the model shares was there before it."""
        return all(self._sharers[name] > 1 for name in self._reserved[key].footprint.shared)

    def reservation(self, key: ModelKey) -> Reservation:
        return self._reserved[key]

    def set_memory(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes

    def set_pressure(self, pressure_bytes: int) -> None:
        """So much of the memory may not be used for the moment."""
        self._pressure_bytes = pressure_bytes

    @property
    def room_bytes(self) -> int:
        """What models may take of the memory."""
        return max(0, self._memory_bytes - self._base_anonymous)

    def view(self, residents: tuple[Resident, ...], rules: Rules) -> MemoryView:
        """For the admission policy. What the kernel measures counts if it is more than what was booked."""
        balance = self.balance()
        return MemoryView(
            memory_limit=balance.memory_limit,
            anonymous_limit=balance.anonymous_limit,
            base_anonymous=self._base_anonymous,
            anonymous=max(balance.anonymous, balance.measured_anonymous),
            mapped=self._mapped_bytes,
            residents=residents,
            holders=Holders(MappingProxyType(self._holders), MappingProxyType(self._sharers)),
            rules=rules,
            pressure=balance.pressure,
        )

    @property
    def is_overdrawn(self) -> bool:
        """The kernel counts more private memory than was booked."""
        balance = self.balance()
        return balance.measured_anonymous > balance.anonymous

    def balance(self) -> Balance:
        copies = sum(reservation.is_copy for reservation in self._reserved.values())
        return Balance(
            memory_limit=self._memory_bytes,
            anonymous_limit=int(self._memory_bytes * self._anonymous_share),
            base_anonymous=self._base_anonymous,
            anonymous=self._base_anonymous + self._shared_bytes + self._own_bytes,
            mapped=self._mapped_bytes,
            measured_anonymous=anonymous_bytes() + self._others_anonymous(),
            models=len(self._reserved) - copies,
            copies=copies,
            pressure=min(self._pressure_bytes, self._memory_bytes),
        )

    def imbalances(self) -> tuple[str, ...]:
        """The ledgers whose running totals are not what the reservations add up to: none, unless there is a bug.

        Walks over every tensor of every model, so nobody asks for each request.
        """
        reservations = self._reserved.values()
        tensors = {tensor: size for reservation in reservations for tensor, size in reservation.tensors.items()}
        shared = {name: size for reservation in reservations for name, size in reservation.footprint.shared.items()}
        ledgers = {
            "mapped": (self._mapped_bytes, sum(tensors.values())),
            "shared": (self._shared_bytes, sum(shared.values())),
            "own": (self._own_bytes, sum(reservation.footprint.own_bytes for reservation in reservations)),
            "holders": (self._holders, Counter(tensor for reservation in reservations for tensor in reservation.tensors)),
            "sharers": (self._sharers, Counter(name for reservation in reservations for name in reservation.footprint.shared)),
        }
        return tuple(name for name, (running, added_up) in ledgers.items() if running != added_up)


def anonymous_bytes() -> int:
    """Private resident memory of this process: RssAnon, a counter of the kernel's that costs nothing to read.

    smaps_rollup's `Anonymous` says the same, but walks every page table: 0.3 s with 600 models mapped.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: flatshare needs Linux 4.5 or later")


def _drop(counter: Counter[Name], name: Name) -> bool:
    """Count one less; True if that was the last."""
    counter[name] -= 1
    if counter[name] > 0:
        return False
    del counter[name]
    return True
