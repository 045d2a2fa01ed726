"""Whose turn is it? Start-time fair queueing: each tenant gets its share by weight, whoever asks how much.

Goyal, Vin, Cheng, "Start-time fair queueing" (1996). A piece of work is stamped with the virtual time at which its tenant's share
would let it start, and the smallest stamp goes next. A tenant that was away has saved nothing up, and one that floods waits for itself.

    tenant a (floods)   |a1   |a2   |a3   |a4   …        stamps 0 1 2 3
    tenant b (rarely)                |b1                 stamp = the virtual time now: next but one at the latest

Long pieces stand in a line of their own, which may have to wait. Each line has its own virtual time: were it one, the long ones that
had to wait would have old stamps, and a tenant's backlog of them would go before everybody who came later.
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
        self._short: _Line[T] = _Line()
        self._long: _Line[T] = _Line()
        self._number = 0

    def __len__(self) -> int:
        return self._short.count + self._long.count

    @property
    def cost(self) -> float:
        """Of all that wait."""
        return self._short.cost + self._long.cost

    def waiting(self, tenant: Tenant) -> int:
        return self._short.waiting[tenant] + self._long.waiting[tenant]

    def tenants(self) -> dict[Tenant, int]:
        """How many of each wait."""
        return dict(self._short.waiting + self._long.waiting)

    def lines(self) -> dict[str, int]:
        """How many wait in each line."""
        return {"short": self._short.count, "long": self._long.count}

    def push(self, item: T, tenant: Tenant, *, cost: float, weight: float, is_long: bool = False) -> Entry[T]:
        """Take a place. The entry is for `drop`."""
        line, other = (self._long, self._short) if is_long else (self._short, self._long)
        if not line.count:
            line.served = max(line.served, other.served if other.count else 0.0)  # a line that was empty has saved nothing up
        self._number += 1
        entry = Entry(line.stamp(tenant), self._number, item, tenant, cost, is_long)
        line.add(entry, cost / weight)
        return entry

    def pop(self, *, with_long: bool = True) -> T | None:
        """The next one's turn; without the long ones if they have to wait. None if nobody is there."""
        lines = [line for line in ((self._short, self._long) if with_long else (self._short,)) if line.count]
        if not lines:
            return None
        item = min(lines, key=lambda line: line.served).pop()
        if not len(self):
            self._short.reset()  # nobody waits: all are equal again, and no rounding error stays
            self._long.reset()
        return item

    def drop(self, entry: Entry[T]) -> None:
        """Give the place up. Does nothing if its turn has come already."""
        if not entry.is_gone:
            (self._long if entry.is_long else self._short).forget(entry)

    def take_like(self, is_like: Callable[[T], bool], tenant: Tenant) -> Iterator[T]:
        """Those of the tenant that may go along with one whose turn it is; each that is consumed has had its turn, and is charged."""
        for entry in sorted(entry for entry in self._short.heap if entry.tenant == tenant and not entry.is_gone):
            if is_like(entry.item):
                self._short.forget(entry)
                yield entry.item

    def ahead_of(self, tenant: Tenant, *, is_long: bool = False) -> float:
        """How much of the waiting work would have its turn before a newcomer of this tenant's: the fluid limit of the shares."""
        line, other = (self._long, self._short) if is_long else (self._short, self._long)
        stamp = line.stamp(tenant)
        ahead = sum(entry.cost for entry in line.heap if not entry.is_gone and entry.stamp <= stamp)
        return ahead + min(other.cost, ahead)  # the lines take turns


class _Line(Generic[T]):
    """One queue with its own virtual time."""

    def __init__(self) -> None:
        self.heap: list[Entry[T]] = []
        self.waiting: Counter[Tenant] = Counter()
        self.count = 0
        self.cost = 0.0
        self.served = 0.0
        """Cost of all that had their turn, to share the workers between the lines."""
        self._finish: dict[Tenant, float] = {}
        self._virtual = 0.0

    def stamp(self, tenant: Tenant) -> float:
        return max(self._virtual, self._finish.get(tenant, 0.0))

    def add(self, entry: Entry[T], share: float) -> None:
        self._finish[entry.tenant] = entry.stamp + share
        heapq.heappush(self.heap, entry)
        self.waiting[entry.tenant] += 1
        self.count += 1
        self.cost += entry.cost

    def pop(self) -> T:
        while self.heap[0].is_gone:
            heapq.heappop(self.heap)
        entry = heapq.heappop(self.heap)
        self._virtual = max(self._virtual, entry.stamp)
        self.served += entry.cost
        self.forget(entry)
        return entry.item

    def forget(self, entry: Entry[T]) -> None:
        entry.is_gone = True
        self.cost -= entry.cost
        self.count -= 1
        self.waiting[entry.tenant] -= 1
        if self.waiting[entry.tenant] <= 0:
            del self.waiting[entry.tenant]
        if not self.count:
            self.heap.clear()
            self.cost = 0.0

    def reset(self) -> None:
        self._finish.clear()
        self._virtual = 0.0
        self.served = 0.0
