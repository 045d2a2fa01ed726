"""Step 5 of a request's path: keep models in memory, lend them out, load what is missing, evict what is idle.

One task owns the state: everything here runs on the event loop, the work that takes time on loader threads. A model that is lent out
cannot be evicted; a request for a model that is being loaded joins the one load, if it can wait so long.

    absent ──lease or load──▶ loading ──▶ resident ──evicted, or unloaded──▶ absent
                                 └─ fails: every rider hears why, the model is absent again
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from flatshare.core.call import ModelSource, Urgency
from flatshare.core.clock import Clock
from flatshare.core.errors import AlreadyLoaded, FlatshareError, NotResident, OutOfMemory
from flatshare.core.ids import ModelDigest, ModelKey, Tenant
from flatshare.core.settings import SharingSettings
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Backend, Packable, RemoteModel
from flatshare.instance.board import Board, unmarked
from flatshare.instance.books import Balance, Books, Reservation
from flatshare.instance.copies import Copies, copy_key
from flatshare.instance.demand import DemandBook
from flatshare.instance.finding import Finder, Found
from flatshare.instance.holding import Holding, Lease, Loaded, Resting
from flatshare.instance.load_line import Loads, arrival, ended_as, too_late, was_not_worth_it, would_be_late
from flatshare.instance.loading import Loader
from flatshare.instance.recheck import Recheck
from flatshare.instance.room import Held, ResidentInfo, Room
from flatshare.instance.turnstile import Claim, always
from flatshare.policy.loads import Start
from flatshare.telemetry.journal import Entry, Journal
from flatshare.telemetry.log import get_logger

log = get_logger("cache")
PLAIN_SHARING = SharingSettings()


class ModelCache:
    """See the module. `finder` and `backend` do the work, `books` keep the ledgers, `journal` the reasons."""

    def __init__(
        self,
        backend: Backend,
        finder: Finder,
        books: Books,
        threads: Executor,
        clock: Clock,
        journal: Journal,
        *,
        patience_s: float,
        recheck_s: float,
        sharing: SharingSettings = PLAIN_SHARING,
        board: Board | None = None,
    ) -> None:
        self._backend = backend
        self._finder = finder
        self._books = books
        self._threads = threads
        self._clock = clock
        self._journal = journal
        self._patience_s = patience_s
        self._entries: dict[ModelKey, Holding] = {}
        self._departing: dict[ModelKey, asyncio.Task[None]] = {}
        self._sharing = sharing
        self._loads = Loads(sharing.queue, sharing.disk.parallel_fetches)
        self.demand = DemandBook(clock)
        self.room = Room(self, books, self.demand, sharing, clock.monotonic_s, patience_s=patience_s)
        self.copies = Copies(books, clock, journal, board, self.room.changed.set)
        self._recheck = Recheck(recheck_s, clock, self._find, replace=self._outdated, failed=self._unchecked)
        self._loader = Loader(backend, finder, books, threads, board, self.is_quiet)

    @asynccontextmanager
    async def lease(self, key: ModelKey, source: ModelSource | None, deadline_s: float | None = None) -> AsyncIterator[Lease]:
        """Lend the model for the time of a block: `borrow`, and `give_back` at its end."""
        lease = await self.borrow(key, source, deadline_s)
        try:
            yield lease
        finally:
            self.give_back(lease)

    async def borrow(self, key: ModelKey, source: ModelSource | None, deadline_s: float | None = None) -> Lease:
        """Lend the model for one request, loading it first if `source` says where it lies, and if that can be done by the deadline.

        Raises NotResident, TooLate, or why the load failed.
        """
        entry = self._entries.get(key)
        is_cold = entry is None or not entry.ready.done()
        asked_s = self._clock.monotonic_s()
        if entry is None:
            if source is None:
                raise NotResident(f"model {key} is not loaded: POST /models first")
            entry = self._begin_by(key, source, deadline_s)
        elif is_cold:
            self._join(key, entry, deadline_s)
        else:
            self._recheck.if_due(key, entry, asked_s)
            loaded = entry.ready.result()
            entry.leases += 1
            self._loader.activity += 1
            return Lease(loaded.model[0], loaded.digest, None, entry.tenant, key, entry)
        entry.leases += 1
        self.demand.visit(key, entry.source)
        try:
            loaded = await arrival(entry.ready, deadline_s)
        except BaseException:
            self._let_go(entry)
            raise
        return Lease(loaded.model[0], loaded.digest, self._clock.monotonic_s() - asked_s, entry.tenant, key, entry, self.demand.cause(key))

    def give_back(self, lease: Lease) -> None:
        """End a lease. A visit that cost nothing is written down once the answer is on its way."""
        self._let_go(lease.held)
        if lease.cold_start_s is None:
            asyncio.get_running_loop().call_soon(self.demand.visit, lease.key, lease.held.source, lease.held.used_s)

    async def load(self, key: ModelKey, source: ModelSource) -> None:
        """Bring a model into memory ahead of its first request. Raises AlreadyLoaded, or why it failed."""
        if key in self._entries:
            raise AlreadyLoaded(f"model {key} is loaded already")
        async with self.lease(key, source):
            pass

    async def warm(self, key: ModelKey, source: ModelSource) -> None:
        """Load it, if it is absent, without counting that as somebody's request. Raises why it failed."""
        if key not in self._entries:
            entry = self._begin(key, source, Urgency.AHEAD, is_fetch=not self._finder.is_here(source))
            entry.is_ahead = True
            await asyncio.shield(entry.ready)

    async def require(self, key: ModelKey, source: ModelSource | None) -> None:
        """Raises UnknownTarget if there is no such model, in memory or at `source`, and NotResident without a source. Loads nothing."""
        if key in self._entries:
            return
        if source is None:
            raise NotResident(f"model {key} is not loaded: POST /models first")
        await self._finder.require(source)

    async def unload(self, key: ModelKey) -> None:
        """Take a model out of memory once its riders are done; its memory is free when this returns. Raises NotResident."""
        entry = self._entries.get(key)
        if entry is None:
            raise NotResident(f"model {key} is not loaded")
        while entry.leases > 0 or not entry.ready.done():
            await self.room.change()
        if self._entries.get(key) is entry and entry.is_loaded:
            await self.remove(key, "unload", "asked", "asked for")

    def replace(self, digests: frozenset[ModelDigest], reason: str) -> None:
        """Models of these digests leave as soon as their riders have, and the next request loads them anew."""
        for key, entry in list(self._entries.items()):
            if entry.is_loaded and entry.ready.result().digest in digests:
                self._begin_removal(key, "replace", "replaced", reason)

    async def set_memory(self, memory_bytes: int) -> None:
        """Change the budget; what no longer fits leaves as soon as it is idle.

        Raises OutOfMemory, and keeps the old budget, if what is in use does not fit and stays in use.
        """
        await self.room.resize(memory_bytes)

    async def allow(self, memory_bytes: int, reason: str, *, is_tight: bool) -> None:
        """Use only so much of the budget for the moment; what is idle leaves for it. What is in use stays, and leaves afterwards."""
        await self.room.allow(memory_bytes, reason, is_tight=is_tight)

    def snapshot(self) -> tuple[ResidentInfo, ...]:
        """The models in memory now, most recently used first."""
        now = self._clock.monotonic_s()
        ready = [(key, entry, entry.ready.result()) for key, entry in self._entries.items() if entry.is_loaded]
        taken = self.copies.taken_bytes
        infos = [
            ResidentInfo(k, e.source.uri, m.digest, e.leases, now - e.used_s, m.mapped_bytes, taken(k), m.model[0].signature.versions)
            for k, e, m in ready
        ]
        return tuple(sorted(infos, key=lambda info: info.idle_s))

    def balance(self) -> Balance:
        return self._books.balance()

    def source_of(self, key: ModelKey) -> ModelSource | None:
        """Where a loaded model came from; None if it is not loaded."""
        entry = self._entries.get(key)
        return entry.source if entry is not None and entry.is_loaded else None

    def reservation_for(self, stored: StoredModel) -> Reservation:
        """What a load would take."""
        return self._loader.reservation(stored)

    def state_of(self, key: ModelKey) -> str:
        """resident, loading or absent."""
        entry = self._entries.get(key)
        return "absent" if entry is None else "resident" if entry.is_loaded else "loading"

    def imbalances(self) -> tuple[str, ...]:
        """What does not add up: nothing, unless there is a bug. The ledgers balance, and hold exactly the models that are in memory."""
        wrong = self._books.imbalances()
        if any(entry.leases < 0 for entry in self._entries.values()):
            wrong += ("leases",)
        is_at_rest = not self._departing and all(entry.is_loaded for entry in self._entries.values())
        return (*wrong, "residents") if is_at_rest and self._books.balance().models != len(self._entries) else wrong

    def _let_go(self, entry: Holding) -> None:
        entry.leases -= 1
        entry.used_s = self._clock.monotonic_s()
        if not entry.leases:  # a plan costs milliseconds: not for each rider of a model that stays in use
            self.room.changed.set()

    # Loading.

    def _begin_by(self, key: ModelKey, source: ModelSource, deadline_s: float | None) -> Holding:
        """Raises TooLate, at once, if the model would not be there by the deadline."""
        is_fetch = not self._finder.is_here(source)
        load_s = self.demand.reload_s(key, is_fetch=is_fetch)
        begun = self._loads.start(self._entries.values(), load_s, deadline_s, is_fetch=is_fetch)
        if begun is Start.FOR_THIS:
            return self._begin(key, source, is_fetch=is_fetch)
        self.demand.visit(key, source)
        if is_fetch and not self.demand.may_be_worth_a_fetch(key):
            begun = Start.NOT_NOW
        if begun is Start.FOR_THE_NEXT:
            # By value, what nobody waits for has to be worth more than what would leave the disk for it.
            is_weighed = is_fetch and self._sharing.memory.order == "value"
            self._begin(key, source, Urgency.AHEAD if is_weighed else Urgency.DEMAND, is_fetch=is_fetch).is_ahead = True
        raise too_late(key, begun)

    def _join(self, key: ModelKey, entry: Holding, deadline_s: float | None) -> None:
        """Somebody waits now for what is loaded. Raises TooLate, at once, if it is fetched ahead and would not be there by the deadline."""
        # All of it, however long it has been under way: it may have stood behind those that are waited for all the time.
        if entry.gives_way and would_be_late(self.demand.reload_s(key, is_fetch=True), deadline_s):
            self.demand.visit(key, entry.source)
            raise too_late(key, Start.FOR_THE_NEXT)
        self._finder.hasten(entry.source)
        entry.is_ahead = entry.is_ahead and not entry.is_fetch

    def _begin(self, key: ModelKey, source: ModelSource, urgency: Urgency = Urgency.DEMAND, *, is_fetch: bool) -> Holding:
        """Raises Overloaded or OverQuota if too many load already."""
        tenant = self.room.tenant(source)
        self._loads.require_place(tenant, self.loading())
        now = self._clock.monotonic_s()
        task = asyncio.get_running_loop().create_task(self._load(key, source, urgency))
        entry = self._entries[key] = Holding(source, tenant, task, began_s=now, checked_s=now, used_s=now, is_fetch=is_fetch)
        task.add_done_callback(lambda done: self._settle(key, entry, done))
        return entry

    def loading(self) -> list[Tenant]:
        """The tenant of each model that is on its way in, or waits for its turn."""
        return [entry.tenant for entry in self._entries.values() if not entry.ready.done()]

    def _settle(self, key: ModelKey, entry: Holding, done: asyncio.Task[Loaded]) -> None:
        """A load that failed leaves no trace but its reason."""
        error = asyncio.CancelledError("the instance stops") if done.cancelled() else done.exception()
        if error is not None:
            del self._entries[key]
            if was_not_worth_it(error, entry):
                self.demand.refused(key)
            sentence = str(error) if isinstance(error, FlatshareError) else f"{type(error).__name__}: {error}"
            self._note(ended_as(error, entry), entry.source.uri, sentence, entry.began_s)
        self._loads.over(entry, self._entries.values())
        self.room.changed.set()

    async def _load(self, key: ModelKey, source: ModelSource, urgency: Urgency) -> Loaded:
        found = await self._find(source, urgency, self._entries[key].is_wanted)
        reservation = self._loader.reservation(found.stored)
        if key in self._departing:  # the same model is on its way out, and still in the books
            await asyncio.wait([self._departing[key]])
        try:
            async with asyncio.timeout(None) as patience:
                while (loaded := await self._in_turn(key, source, found, reservation)) is None:
                    if patience.when() is None:
                        patience.reschedule(asyncio.get_running_loop().time() + self._patience_s)
                    await self.room.change(0.25)
        except TimeoutError as error:
            if not patience.expired():
                raise
            tenant = self.room.tenant(source)
            raise OutOfMemory(
                f"no room after {self._patience_s:.0f} s: tenant {tenant} is at its ceiling, and its other models are in use; call again"
            ) from error
        return loaded

    async def _in_turn(self, key: ModelKey, source: ModelSource, found: Found, reservation: Reservation) -> Loaded | None:
        """None if the tenant's own models are in the way: the turn goes to others meanwhile."""
        tenant, entry = self.room.tenant(source), self._entries[key]
        async with self._loads.turns.turn(Claim(tenant, self.room.weight(tenant), self.demand.load_s(key), entry.is_wanted)):
            began_s = self._clock.monotonic_s()
            entrance = await self.room.reserve(key, source, reservation)
            if entrance is None:
                return None
            model = await self._loader.load(key, found.stored)
        now_s = self._clock.monotonic_s()
        entry.is_scratch = entrance.is_scratch
        # Without the wait for a turn, and without the import, which only a model that has left the disk takes again.
        self.demand.loaded(key, found.look_s + now_s - began_s, found.fetch_s)
        self._note("load", source.uri, entrance.reason, entry.began_s)
        manifest = found.stored.manifest
        return Loaded(manifest.digest, manifest.mapped_bytes, [model], now_s - entry.began_s)

    def is_quiet(self, but: ModelKey | None = None) -> bool:
        """Nobody runs, loads or leaves, except for this one."""
        others = (entry for key, entry in self._entries.items() if key != but)
        return not self._departing and not any(entry.leases or not entry.ready.done() for entry in others)

    # Keeping up with artifacts (instance/recheck.py).

    async def _find(self, source: ModelSource, urgency: Urgency = Urgency.DEMAND, is_wanted: Callable[[], bool] = always) -> Found:
        return await self._finder.find(source, self._digests_in_use(), urgency, is_wanted)

    def _outdated(self, key: ModelKey, entry: Holding, reason: str) -> None:
        if self._entries.get(key) is entry:
            self._begin_removal(key, "replace", "replaced", reason)

    def _unchecked(self, entry: Holding, reason: str, started_s: float) -> None:
        self._note("recheck", entry.source.uri, reason, started_s)

    # Prepacked copies (instance/promote.py).

    def packable(self) -> Iterator[Resting]:
        """The models in memory that may have a copy."""
        for key, entry in self._entries.items():
            if entry.is_loaded and isinstance(model := unmarked(entry.ready.result().model[0]), Packable):
                yield Resting(key, entry.source, model, entry)

    def holds(self, resting: Resting) -> bool:
        """It has not left since."""
        return self._entries.get(resting.key) is resting.held

    # What the room asks (instance/room.py).

    def held(self) -> Iterator[Held]:
        for key, entry in self._entries.items():
            if entry.is_loaded:
                yield Held(key, entry.source, entry.used_s, entry.leases, entry.is_scratch)
        for key, copy in self.copies:
            yield Held(key, copy.source, copy.used_s, 0, is_scratch=False, copy_gain=copy.gain)

    def is_idle(self, key: ModelKey) -> bool:
        if key in self.copies:
            return True
        entry = self._entries.get(key)
        return entry is not None and entry.is_loaded and entry.leases == 0

    async def remove(self, key: ModelKey, kind: str, cause: str, reason: str) -> None:
        if key in self.copies:
            await self.copies.make_room(key, reason)
        else:
            await asyncio.shield(self._begin_removal(key, kind, cause, reason))

    @property
    def can_change(self) -> bool:
        held = (entry for key, entry in self._entries.items() if key in self._books)
        return bool(self._departing) or self.copies.is_changing or any(entry.leases > 0 or not entry.is_loaded for entry in held)

    async def shrink(self) -> None:
        """Have the engines give back what they and the heap keep."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._backend.shrink)

    # Leaving.

    def _begin_removal(self, key: ModelKey, kind: str, cause: str, reason: str) -> asyncio.Task[None]:
        """Out of the table at once, out of the books when the memory is given back."""
        entry = self._entries.pop(key)
        departure = asyncio.get_running_loop().create_task(self._depart(key, entry, kind, cause, reason))
        self._departing[key] = departure
        departure.add_done_callback(lambda _: self._departing.pop(key))
        return departure

    async def _depart(self, key: ModelKey, entry: Holding, kind: str, cause: str, reason: str) -> None:
        started_s = self._clock.monotonic_s()
        while entry.leases > 0:
            await self.room.change()
        await self.copies.drop(copy_key(key), reason)
        model = entry.ready.result().model[0]
        if isinstance(model, RemoteModel):
            await model.close()
        del model
        is_last = not any(other.is_loaded for other in self._entries.values())
        await asyncio.get_running_loop().run_in_executor(self._threads, self._dispose, entry.ready.result(), is_last)
        self._books.release(key)
        if kind == "evict":
            self.demand.evicted(key)
        self._note(kind, entry.source.uri, reason, started_s, cause)
        self.room.changed.set()

    def _dispose(self, loaded: Loaded, is_last: bool) -> None:
        loaded.model.clear()
        if is_last:
            self._backend.shrink()

    def _digests_in_use(self) -> frozenset[ModelDigest]:
        return frozenset(entry.ready.result().digest for entry in self._entries.values() if entry.is_loaded)

    def _note(self, kind: str, uri: str, reason: str, started_s: float, cause: str = "") -> None:
        took_ms = 1e3 * (self._clock.monotonic_s() - started_s)
        self._journal.note(Entry(self._clock.wall_s(), kind, uri, reason, took_ms, cause))
        log.info(f"model_{kind}", uri=uri, reason=reason, took_ms=round(took_ms, 1))
