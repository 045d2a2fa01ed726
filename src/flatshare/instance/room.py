"""Step 5d: make room. One plan at a time; a whole set of victims is chosen before any of them goes."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from flatshare.core.call import FIRST_VERSION, ModelSource
from flatshare.core.errors import NeverFits, OutOfMemory
from flatshare.core.ids import ModelDigest, ModelKey, Tenant
from flatshare.core.settings import SharingSettings
from flatshare.instance.books import Books, Reservation
from flatshare.instance.demand import DemandBook
from flatshare.policy import admit, evict, tenants
from flatshare.policy.admit import Admission, MemoryView, Need, Rules, Verdict
from flatshare.policy.evict import Manners, Order, Resident
from flatshare.policy.tenants import TenantOf

_SHRINK_EVERY_S = 10.0  # it collects garbage, which stops everybody, and what it gives back the next run takes again


@dataclass(frozen=True, slots=True)
class Held:
    """What the cache knows of a model that is loaded."""

    key: ModelKey
    source: ModelSource
    used_s: float
    leases: int
    is_scratch: bool
    copy_gain: float | None = None
    """Of a prepacked copy: seconds saved per second. None: a model."""


@dataclass(frozen=True, slots=True)
class ResidentInfo:
    """A model in memory, as status reports show it."""

    key: ModelKey
    uri: str
    digest: ModelDigest
    leases: int
    idle_s: float
    mapped_bytes: int
    copy_bytes: int = 0
    """Private memory of its prepacked copy, if it has one."""
    versions: tuple[str, ...] = (FIRST_VERSION,)


class Table(Protocol):
    """What is asked of the cache."""

    def held(self) -> Iterable[Held]:
        """The models that are loaded, and the prepacked copies of some."""

    def is_idle(self, key: ModelKey) -> bool:
        """Still here and not lent out: what was idle when the plan was made may have found a rider since."""

    async def remove(self, key: ModelKey, kind: str, cause: str, reason: str) -> None:
        """Take it out of memory; returns when the books say so. `cause` is one word, for metrics."""

    @property
    def can_change(self) -> bool:
        """Something is lent out, on its way in or on its way out: a wait for room may end."""

    async def shrink(self) -> None:
        """Give back what the heap keeps."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """A reservation that was entered, why it could be, and where."""

    reason: str
    is_scratch: bool


class Room:
    """Decides with policy/admit.py, acts through the table. `changed` is set by whoever gives something back."""

    def __init__(
        self, table: Table, books: Books, demand: DemandBook, sharing: SharingSettings, now_s: Callable[[], float], *, patience_s: float
    ) -> None:
        self._table = table
        self._books = books
        self._demand = demand
        self._sharing = sharing
        self._now_s = now_s
        self._patience_s = patience_s
        self.tenant = TenantOf(sharing.memory.tenant_pattern)
        self._admission = asyncio.Lock()  # one plan at a time, first come first served
        self.changed = asyncio.Event()
        self._shrunk_s = float("-inf")
        self.is_tight = False
        """The machine runs short of memory: nothing is loaded for the moment."""

    def weight(self, tenant: Tenant) -> float:
        return self._sharing.tenant(tenant).weight

    def is_pinned(self, source: ModelSource) -> bool:
        return tenants.is_pinned(tenants.target_of(source), self._sharing.memory.pinned)

    def view(self) -> MemoryView:
        """The books and the models as the policies see them."""
        return self._books.view(tuple(map(self._resident, self._table.held())), self._rules())

    def _resident(self, held: Held) -> Resident:
        reservation, tenant = self._books.reservation(held.key), self.tenant(held.source)
        what = (held.key, held.used_s, held.leases, reservation.footprint.own_bytes, reservation.tensors, reservation.footprint.shared)
        if held.copy_gain is not None:  # nobody's: neither a floor nor a pin protects what its model does not need
            return Resident(*what, worth=held.copy_gain, is_copy=True)
        return Resident(
            *what,
            worth=self._demand.worth(held.key, self.weight(tenant)),
            tenant=tenant,
            is_pinned=self.is_pinned(held.source),
            is_scratch=held.is_scratch,
        )

    def need(self, key: ModelKey, source: ModelSource, reservation: Reservation) -> Need:
        """What a model takes; the policy subtracts what is there already."""
        tenant = self.tenant(source)
        value = self._demand.worth(key, self.weight(tenant))
        if self.is_pinned(source):
            value = float("inf")
        return Need(reservation.footprint.own_bytes, reservation.footprint.shared, reservation.tensors, tenant, value)

    def preview(self, need: Need) -> Admission:
        """What would be decided now. Changes nothing."""
        return admit.at_once(self._books.view((), self._rules()), need) or admit.decide(self.view(), need)

    async def reserve(self, key: ModelKey, source: ModelSource, reservation: Reservation) -> Entrance | None:
        """Evict until the model fits, waiting for leases to end if need be; it is in the books when this returns.

        None if it has to wait for its own tenant's models only: then the caller waits for `change`, where it holds up nobody.
        Raises NeverFits or OutOfMemory.
        """
        need = self.need(key, source, reservation)
        admission = await self._make(need, f"room for {source.uri}")
        if admission.verdict is Verdict.WAIT:
            return None
        self._books.reserve(key, reservation)
        return Entrance(admission.reason, admission.is_scratch)

    async def resize(self, memory_bytes: int) -> None:
        """Another budget: evict until all fits. Raises OutOfMemory, and keeps the old one, if what is in use stays in use."""
        before = self._books.balance().memory_limit
        self._books.set_memory(memory_bytes)
        try:
            await self._make(Need(0, {}, {}), "the memory budget shrank")
        except OutOfMemory:
            self._books.set_memory(before)
            raise

    async def allow(self, memory_bytes: int, reason: str, *, is_tight: bool) -> None:
        """So much of the budget for the moment: evict what is idle beyond that."""
        self._books.set_pressure(max(0, self._books.balance().memory_limit - memory_bytes))
        self.is_tight = is_tight
        self.changed.set()
        await self.fit_what_is_idle(f"pressure from outside: {reason}")

    async def fit_what_is_idle(self, purpose: str) -> None:
        """Evict what is idle as far as the books are beyond their limits, and wait for nobody."""
        view = self.view()
        shortage = admit.shortage_after(view, 0, 0)
        for resident in evict.ranked(view.residents, view.holders, view.rules.manners):
            if shortage.is_over:
                return
            if self._table.is_idle(resident.key):
                await self._table.remove(resident.key, "evict", "pressure", purpose)
            shortage = admit.shortage_after(self.view(), 0, 0)

    async def change(self, within_s: float | None = None) -> None:
        """Wait until something is given back, or so long."""
        self.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changed.wait()

    async def _make(self, need: Need, purpose: str) -> Admission:
        """ADMIT, with nothing awaited since it was decided; or WAIT for the tenant's own models."""
        lack = "other loads were first in line"
        try:
            async with asyncio.timeout(self._patience_s), self._admission:
                while True:
                    if self.is_tight and need.total_bytes:
                        lack = "the machine runs short of memory"
                        await self.change()
                        continue
                    admission = await self._step(need, purpose)
                    if admission.verdict is Verdict.ADMIT or admission.is_own_limit:
                        return admission
                    lack = admission.reason
                    if admission.verdict is Verdict.WAIT:
                        if not self._table.can_change:
                            raise OutOfMemory(f"no room, although nothing is in use: {lack}; call again, or raise --memory")
                        await self.change()
        except TimeoutError as error:
            raise OutOfMemory(f"no room after {self._patience_s:.0f} s: {lack}; call again, or raise --memory") from error

    async def _step(self, need: Need, purpose: str) -> Admission:
        """Look, decide, and send the victims away. Raises NeverFits."""
        admission = self.preview(need)
        if admission.verdict is not Verdict.ADMIT and self._books.is_overdrawn and self._now_s() - self._shrunk_s > _SHRINK_EVERY_S:
            self._shrunk_s = self._now_s()
            await self._table.shrink()  # perhaps it is only what the heap keeps: look before models pay for it
            admission = self.preview(need)
        if admission.verdict is Verdict.NEVER_FITS:
            raise NeverFits(admission.reason)
        for victim in filter(self._table.is_idle, admission.victims):
            cause = admission.short_of if need.total_bytes else "shrunk"
            await self._table.remove(victim, "evict", cause, f"{purpose}: {admission.reason}")
        return admission

    def _rules(self) -> Rules:
        memory, named = self._sharing.memory, self._sharing.tenants
        manners = Manners(
            order=Order(memory.order),
            now_s=self._now_s(),
            floors={tenant: settings.floor_bytes for tenant, settings in named.items() if settings.floor_bytes},
        )
        scratch_share = memory.scratch_share if memory.order == "value" else 0.0
        return Rules(
            manners,
            is_all_resident=memory.mode == "all-resident",
            scratch_bytes=int(self._books.room_bytes * scratch_share),
            ceilings={tenant: settings.ceiling_bytes for tenant, settings in named.items() if settings.ceiling_bytes is not None},
        )
