"""Whose turn is it? Start-time fair queueing: each tenant gets its share by weight, whoever asks how much.

Goyal, Vin, Cheng, "Start-time fair queueing" (1996). A piece of work is stamped with the virtual time at which its tenant's share
would let it start, and the smallest stamp goes next. A tenant that was away has saved nothing up, and one that floods waits for itself.

    tenant a (floods)   |a1   |a2   |a3   |a4   …        stamps 0 1 2 3
    tenant b (rarely)                |b1                 stamp = the virtual time now: next but one at the latest
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from flatshare.core.ids import Tenant

T = TypeVar("T")


@dataclass(slots=True, order=True)
class Entry(Generic[T]):
    """A place in the queue. For its owner only to hand back to `drop`."""

    stamp: float
    number: int
    item: T
    tenant: Tenant
    cost: float
    is_long: bool
    is_gone: bool = False


class FairQueue(Generic[T]):
    """Who waits, in order of turns. No clock, no lock: its owner has those."""

    def __init__(self) -> None:
        self._short: list[Entry[T]] = []
        self._long: list[Entry[T]] = []
        self._finish: dict[Tenant, float] = {}
        self._waiting: Counter[Tenant] = Counter()
        self._virtual = 0.0
        self._number = 0
        self.cost = 0.0
        """Of all that wait."""

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def waiting(self, tenant: Tenant) -> int:
        return self._waiting[tenant]

    def tenants(self) -> dict[Tenant, int]:
        """How many of each wait."""
        return dict(self._waiting)

    def push(self, item: T, tenant: Tenant, *, cost: float, weight: float, is_long: bool = False) -> Entry[T]:
        """Take a place. The entry is for `drop`."""
        stamp = self._stamp(tenant)
        self._finish[tenant] = stamp + cost / weight
        self._number += 1
        entry = Entry(stamp, self._number, item, tenant, cost, is_long)
        heapq.heappush(self._long if is_long else self._short, entry)
        self._waiting[tenant] += 1
        self.cost += cost
        return entry

    def pop(self, *, with_long: bool = True) -> T | None:
        """The next one's turn; without the long ones if they have to wait. None if nobody is there."""
        heap = self._next_heap(with_long=with_long)
        if heap is None:
            return None
        entry = heapq.heappop(heap)
        self._virtual = max(self._virtual, entry.stamp)
        self._forget(entry)
        return entry.item

    def drop(self, entry: Entry[T]) -> None:
        """Give the place up. Does nothing if its turn has come already."""
        if not entry.is_gone:
            self._forget(entry)

    def take_like(self, is_like: Callable[[T], bool], tenant: Tenant) -> Iterator[T]:
        """Those of the tenant that may go along with one whose turn it is; each that is consumed has had its turn, and is charged."""
        for entry in sorted(entry for entry in self._short if entry.tenant == tenant and not entry.is_gone):
            if is_like(entry.item):
                self._forget(entry)
                yield entry.item

    def ahead_of(self, tenant: Tenant) -> float:
        """How much of the waiting work would have its turn before a newcomer of this tenant's: the fluid limit of the shares."""
        stamp = self._stamp(tenant)
        return sum(entry.cost for heap in (self._short, self._long) for entry in heap if not entry.is_gone and entry.stamp <= stamp)

    def _stamp(self, tenant: Tenant) -> float:
        return max(self._virtual, self._finish.get(tenant, 0.0))

    def _next_heap(self, *, with_long: bool) -> list[Entry[T]] | None:
        heaps = [self._short, self._long] if with_long else [self._short]
        for heap in heaps:
            while heap and heap[0].is_gone:
                heapq.heappop(heap)
        filled = [heap for heap in heaps if heap]
        return min(filled, key=lambda heap: heap[0]) if filled else None

    def _forget(self, entry: Entry[T]) -> None:
        entry.is_gone = True
        self.cost -= entry.cost
        self._waiting[entry.tenant] -= 1
        if self._waiting[entry.tenant] <= 0:
            del self._waiting[entry.tenant]
            if not self._waiting:
                self._short.clear()
                self._long.clear()
                self._finish.clear()  # nobody waits: all are equal again, and no rounding error stays
                self._virtual = 0.0
                self.cost = 0.0
