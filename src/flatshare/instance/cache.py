"""Step 5 of a request's path: keep models in memory, lend them out, load what is missing, evict what is idle.

One task owns the state: everything here runs on the event loop, the work that takes time on loader threads. A model that is lent out
cannot be evicted; a request for a model that is being loaded joins the one load.

    absent ──lease or load──▶ loading ──▶ resident ──evicted, or unloaded──▶ absent
                                 └─ fails: every rider hears why, the model is absent again
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from flatshare.core.call import ModelSource
from flatshare.core.clock import Clock
from flatshare.core.errors import AlreadyLoaded, BadPackage, FlatshareError, NeverFits, NotResident, OutOfMemory, StoreUnavailable
from flatshare.core.ids import ModelDigest, ModelKey
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Backend, Footprint, LoadedModel, RemoteBackend, RemoteModel
from flatshare.instance.books import Balance, Books, Reservation
from flatshare.instance.finding import Finder
from flatshare.policy import admit
from flatshare.policy.admit import Verdict
from flatshare.policy.evict import Resident
from flatshare.telemetry.journal import Entry, Journal
from flatshare.telemetry.log import get_logger

log = get_logger("cache")
_RECHECK_FAILED_S = 300.0
_NOTHING = Reservation(Footprint(0, {}), {})


@dataclass(frozen=True, slots=True)
class Lease:
    """A model lent out: it stays in memory until the lease ends."""

    model: LoadedModel | RemoteModel
    digest: ModelDigest
    cold_start_s: float | None
    """How long this request waited for the load; None if the model was there."""


@dataclass(frozen=True, slots=True)
class ResidentInfo:
    """A model in memory, as status reports show it."""

    key: ModelKey
    uri: str
    digest: ModelDigest
    leases: int
    idle_s: float
    mapped_bytes: int


@dataclass(slots=True)
class _Entry:
    """The cache's own record of a model that is loading or resident."""

    source: ModelSource
    ready: asyncio.Task["_Loaded"]
    began_s: float
    used_s: float
    checked_s: float
    """When the artifact was last looked at."""
    leases: int = 0


@dataclass(slots=True)
class _Loaded:
    digest: ModelDigest
    mapped_bytes: int
    model: list[LoadedModel | RemoteModel] = field(repr=False)
    """The only lasting reference; emptied on a loader thread, since unmapping takes a millisecond."""
    took_s: float


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
    ) -> None:
        self._backend = backend
        self._finder = finder
        self._books = books
        self._threads = threads
        self._clock = clock
        self._journal = journal
        self._patience_s = patience_s
        self._recheck_s = recheck_s
        self._entries: dict[ModelKey, _Entry] = {}
        self._departing: dict[ModelKey, asyncio.Task[None]] = {}
        self._recheck_task: asyncio.Task[None] | None = None  # one at a time, so that a slow store delays nothing else
        self._admission = asyncio.Lock()  # one plan at a time, first come first served
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def lease(self, key: ModelKey, source: ModelSource | None) -> AsyncIterator[Lease]:
        """Lend the model for one request, loading it first if `source` says where it lies. Raises NotResident, or why the load failed."""
        entry = self._entries.get(key)
        is_cold = entry is None or not entry.ready.done()
        asked_s = self._clock.monotonic_s()
        if entry is None:
            if source is None:
                raise NotResident(f"model {key} is not loaded: POST /models first")
            entry = self._begin(key, source)
        elif self._recheck_task is None and _is_loaded(entry) and asked_s - entry.checked_s > self._recheck_s:
            self._recheck_task = asyncio.get_running_loop().create_task(self._recheck(key, entry))
            self._recheck_task.add_done_callback(self._end_recheck)
        entry.leases += 1
        try:
            loaded = entry.ready.result() if entry.ready.done() else await asyncio.shield(entry.ready)
            waited_s = self._clock.monotonic_s() - asked_s if is_cold else None
            yield Lease(loaded.model[0], loaded.digest, waited_s)
        finally:
            entry.leases -= 1
            entry.used_s = self._clock.monotonic_s()
            self._changed.set()

    async def load(self, key: ModelKey, source: ModelSource) -> None:
        """Bring a model into memory ahead of its first request. Raises AlreadyLoaded, or why it failed."""
        if key in self._entries:
            raise AlreadyLoaded(f"model {key} is loaded already")
        async with self.lease(key, source):
            pass

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
            await self._wait_for_change()
        if self._entries.get(key) is entry and _is_loaded(entry):
            await self._remove(key, "unload", "asked", "asked for")

    async def set_memory(self, memory_bytes: int) -> None:
        """Change the budget; what no longer fits leaves as soon as it is idle.

        Raises OutOfMemory, and keeps the old budget, if what is in use does not fit and stays in use.
        """
        before = self._books.balance().memory_limit
        self._books.set_memory(memory_bytes)
        try:
            await self._make_room(_NOTHING, "the memory budget shrank")
        except OutOfMemory:
            self._books.set_memory(before)
            raise

    def snapshot(self) -> tuple[ResidentInfo, ...]:
        """The models in memory now, most recently used first."""
        now = self._clock.monotonic_s()
        ready = [(key, entry, entry.ready.result()) for key, entry in self._entries.items() if _is_loaded(entry)]
        infos = [ResidentInfo(k, e.source.uri, m.digest, e.leases, now - e.used_s, m.mapped_bytes) for k, e, m in ready]
        return tuple(sorted(infos, key=lambda info: info.idle_s))

    def balance(self) -> Balance:
        return self._books.balance()

    def source_of(self, key: ModelKey) -> ModelSource | None:
        """Where a loaded model came from; None if it is not loaded."""
        entry = self._entries.get(key)
        return entry.source if entry is not None and _is_loaded(entry) else None

    def check(self) -> None:
        """Invariants, for tests: the ledgers balance, and hold exactly the models that are in memory."""
        self._books.check()
        assert all(entry.leases >= 0 for entry in self._entries.values())
        if not self._departing and all(_is_loaded(entry) for entry in self._entries.values()):
            assert self._books.balance().models == len(self._entries)

    # Loading.

    def _begin(self, key: ModelKey, source: ModelSource) -> _Entry:
        now = self._clock.monotonic_s()
        task = asyncio.get_running_loop().create_task(self._load(key, source))
        entry = self._entries[key] = _Entry(source, task, began_s=now, checked_s=now, used_s=now)
        task.add_done_callback(lambda done: self._settle(key, entry, done))
        return entry

    def _settle(self, key: ModelKey, entry: _Entry, done: asyncio.Task[_Loaded]) -> None:
        """A load that failed leaves no trace but its reason."""
        error = asyncio.CancelledError("the instance stops") if done.cancelled() else done.exception()
        if error is not None:
            del self._entries[key]
            sentence = str(error) if isinstance(error, FlatshareError) else f"{type(error).__name__}: {error}"
            self._note("refuse" if isinstance(error, OutOfMemory) else "fail", entry.source.uri, sentence, entry.began_s)
        self._changed.set()

    async def _load(self, key: ModelKey, source: ModelSource) -> _Loaded:
        started_s = self._clock.monotonic_s()
        stored = await self._finder.find(source, self._digests_in_use())
        reservation = Reservation(self._backend.footprint(stored), stored.manifest.distinct_pieces)
        if key in self._departing:  # the same model is on its way out, and still in the books
            await asyncio.wait([self._departing[key]])
        reason = await self._make_room(reservation, f"room for {source.uri}", key)
        model = await self._load_reserved(key, stored)
        self._note("load", source.uri, reason, started_s)
        manifest = stored.manifest
        return _Loaded(manifest.digest, manifest.mapped_bytes, [model], self._clock.monotonic_s() - started_s)

    async def _load_reserved(self, key: ModelKey, stored: StoredModel) -> LoadedModel | RemoteModel:
        """The reservation goes with the load if it fails."""
        try:
            if isinstance(self._backend, RemoteBackend) and (remote := await self._backend.load_remote(stored)) is not None:
                return remote
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._backend.load, stored)
        except FileNotFoundError as error:  # a collection of the store took or moved it between finding and loading
            self._books.release(key)
            raise StoreUnavailable(f"the model left this machine's disk while it was loaded ({error.filename}): call again") from error
        except Exception:
            self._books.release(key)
            raise
        except BaseException as error:  # a panic in the tokenizers' Rust is no Exception; cancellation is
            self._books.release(key)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise BadPackage(f"loading the model ended in a panic: {error}") from error

    # Keeping up with artifacts.

    async def _recheck(self, key: ModelKey, entry: _Entry) -> None:
        """Has the artifact changed? Then the new version is imported while the old one serves, and the next request loads it.

        An artifact that is gone, broken or out of reach changes nothing: what is in memory goes on serving.
        """
        started_s, before = self._clock.monotonic_s(), entry.ready.result().digest
        try:
            stored = await self._finder.find(entry.source, self._digests_in_use())
        except FlatshareError as error:
            entry.checked_s = self._clock.monotonic_s() + _RECHECK_FAILED_S
            self._note("recheck", entry.source.uri, f"goes on with {before[:12]}: {error}", started_s)
            return
        entry.checked_s = self._clock.monotonic_s()
        if stored.manifest.digest != before and self._entries.get(key) is entry:
            self._begin_removal(key, "replace", "replaced", f"the artifact changed: {before[:12]} → {stored.manifest.digest[:12]}")

    def _end_recheck(self, done: asyncio.Task[None]) -> None:
        self._recheck_task = None
        if not done.cancelled() and done.exception() is not None:
            log.error("recheck_failed", exc_info=done.exception())

    # Making room.

    async def _make_room(self, reservation: Reservation, purpose: str, key: ModelKey | None = None) -> str:
        """Evict until `reservation` fits, waiting for leases to end if need be; the reason that admitted it.

        With a key, the reservation is entered in the same moment. Raises NeverFits or OutOfMemory.
        """
        lack, has_shrunk = "other loads were first in line", False
        try:
            async with asyncio.timeout(self._patience_s), self._admission:
                while True:
                    self._changed.clear()
                    admission = admit.decide(self._books.view(self._residents()), self._books.need(reservation))
                    if admission.verdict is Verdict.ADMIT:
                        if key is not None:
                            self._books.reserve(key, reservation)
                        return admission.reason
                    lack = admission.reason
                    if admission.verdict is Verdict.NEVER_FITS:
                        raise NeverFits(admission.reason)
                    if not has_shrunk and self._books.is_overdrawn:  # perhaps only by what the heap keeps: look before models pay for it
                        has_shrunk = True
                        await asyncio.get_running_loop().run_in_executor(self._threads, self._backend.shrink)
                        continue
                    for victim in filter(self._is_idle, admission.victims):
                        cause = admission.short_of if key is not None else "shrunk"
                        await self._remove(victim, "evict", cause, f"{purpose}: {admission.reason}")
                        has_shrunk = False
                    if admission.verdict is Verdict.WAIT:
                        if not self._can_change:
                            raise OutOfMemory(f"no room, although nothing is in use: {lack}; call again, or raise --memory")
                        await self._changed.wait()
        except TimeoutError as error:
            raise OutOfMemory(f"no room after {self._patience_s:.0f} s: {lack}; call again, or raise --memory") from error

    async def _remove(self, key: ModelKey, kind: str, cause: str, reason: str) -> None:
        await asyncio.shield(self._begin_removal(key, kind, cause, reason))

    def _begin_removal(self, key: ModelKey, kind: str, cause: str, reason: str) -> asyncio.Task[None]:
        """Out of the table at once, out of the books when the memory is given back."""
        entry = self._entries.pop(key)
        departure = asyncio.get_running_loop().create_task(self._depart(key, entry, kind, cause, reason))
        self._departing[key] = departure
        departure.add_done_callback(lambda _: self._departing.pop(key))
        return departure

    async def _depart(self, key: ModelKey, entry: _Entry, kind: str, cause: str, reason: str) -> None:
        started_s = self._clock.monotonic_s()
        while entry.leases > 0:
            await self._wait_for_change()
        model = entry.ready.result().model[0]
        if isinstance(model, RemoteModel):
            await model.close()
        del model
        is_last = not any(_is_loaded(other) for other in self._entries.values())
        await asyncio.get_running_loop().run_in_executor(self._threads, self._dispose, entry.ready.result(), is_last)
        self._books.release(key)
        self._note(kind, entry.source.uri, reason, started_s, cause)
        self._changed.set()

    @property
    def _can_change(self) -> bool:
        """Something is lent out, on its way in or on its way out: a wait for room may end."""
        held = (entry for key, entry in self._entries.items() if key in self._books)
        return bool(self._departing) or any(entry.leases > 0 or not _is_loaded(entry) for entry in held)

    def _dispose(self, loaded: _Loaded, is_last: bool) -> None:
        loaded.model.clear()
        if is_last:
            self._backend.shrink()

    def _residents(self) -> tuple[Resident, ...]:
        return tuple(self._resident(key, entry) for key, entry in self._entries.items() if _is_loaded(entry))

    def _resident(self, key: ModelKey, entry: _Entry) -> Resident:
        reservation = self._books.reservation(key)
        footprint = reservation.footprint
        return Resident(key, entry.used_s, entry.leases, footprint.own_bytes, reservation.tensors, footprint.shared)

    def _is_idle(self, key: ModelKey) -> bool:
        """Still here and not lent out: what was idle when the plan was made may have found a rider since."""
        entry = self._entries.get(key)
        return entry is not None and _is_loaded(entry) and entry.leases == 0

    def _digests_in_use(self) -> frozenset[ModelDigest]:
        return frozenset(entry.ready.result().digest for entry in self._entries.values() if _is_loaded(entry))

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _note(self, kind: str, uri: str, reason: str, started_s: float, cause: str = "") -> None:
        took_ms = 1e3 * (self._clock.monotonic_s() - started_s)
        self._journal.note(Entry(self._clock.wall_s(), kind, uri, reason, took_ms, cause))
        log.info(f"model_{kind}", uri=uri, reason=reason, took_ms=round(took_ms, 1))


def _is_loaded(entry: _Entry) -> bool:
    return entry.ready.done() and not entry.ready.cancelled() and entry.ready.exception() is None
