"""Say why: what is known of one model here, why it came or went, and what a load of it would push out. Changes nothing."""

from dataclasses import dataclass

from flatshare.core.call import ModelSource
from flatshare.core.errors import FlatshareError
from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.core.sizes import MIB
from flatshare.instance.backends.base import Footprint
from flatshare.instance.books import Reservation
from flatshare.instance.cache import ModelCache
from flatshare.instance.finding import Finder, Unseen
from flatshare.policy import evict
from flatshare.policy.admit import MemoryView, Need
from flatshare.policy.evict import Resident
from flatshare.telemetry.journal import Entry, Journal

_HISTORY, _NEXT = 20, 10
_OWN_BYTES = MIB  # of private memory: a mapped model takes less


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be evicted."""

    uri: str
    tenant: str
    idle_s: float
    frees_bytes: int
    """If it alone left."""
    worth_ms_per_s: float
    """What it saves its callers while it is in memory."""
    is_scratch: bool
    is_copy: bool
    """A prepacked copy: the model stays."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a load would do now."""

    verdict: str
    reason: str
    victims: tuple[str, ...]
    needs_bytes: int
    is_scratch: bool
    is_estimate: bool = False
    """The model was never imported here: it is taken to be as large as its artifact."""


@dataclass(frozen=True, slots=True)
class Explanation:
    uri: str
    tenant: str
    state: str
    """resident · loading · absent"""
    is_pinned: bool
    copy_bytes: int
    """Private memory of its prepacked copy; zero if it has none."""
    leases: int
    idle_s: float | None
    worth_ms_per_s: float
    reload_ms: float
    rank: int | None
    """How many leave before it, if it is in memory and may leave at all."""
    spared_because: str | None
    """Why it cannot be evicted now, if it is in memory."""
    dry_run: DryRun | None
    """If it is absent."""
    problem: str | None
    """Why it could not be loaded."""
    history: tuple[Entry, ...]
    """Newest first."""
    next_to_go: tuple[Candidate, ...]


class Explainer:
    """Reads the cache, the store and the journal."""

    def __init__(self, cache: ModelCache, finder: Finder, journal: Journal) -> None:
        self._cache = cache
        self._finder = finder
        self._journal = journal

    async def explain(self, key: ModelKey, source: ModelSource) -> Explanation:
        state, dry_run, problem = self._cache.state_of(key), None, None
        if state == "absent":
            try:
                dry_run = await self._dry_run(key, source)
            except FlatshareError as error:
                problem = str(error)
        view = self._cache.room.view()
        order = evict.ranked(view.residents, view.holders, view.rules.manners)
        models = [resident for resident in order if not resident.is_copy]
        mine = next((resident for resident in view.residents if resident.key == key), None)
        tenant = self._cache.room.tenant(source)
        return Explanation(
            uri=source.uri,
            tenant=tenant,
            state=state,
            is_pinned=self._cache.room.is_pinned(source),
            copy_bytes=self._cache.copies.taken_bytes(key),
            leases=mine.leases if mine else 0,
            idle_s=view.rules.manners.now_s - mine.used_s if mine else None,
            worth_ms_per_s=1e3 * self._cache.demand.worth(key, self._cache.room.weight(tenant)),
            reload_ms=1e3 * self._cache.demand.reload_s(key),
            rank=next((index for index, resident in enumerate(models) if resident.key == key), None),
            spared_because=_spared_because(mine, view) if mine else None,
            dry_run=dry_run,
            problem=problem,
            history=tuple(self._journal.about(source.uri, _HISTORY)),
            next_to_go=tuple(self._candidate(resident, view) for resident in order[:_NEXT]),
        )

    async def _dry_run(self, key: ModelKey, source: ModelSource) -> DryRun:
        stored = await self._finder.known(source)
        if isinstance(stored, Unseen) and not stored.size_bytes:
            never = "this version of the artifact was never imported here: its size is not known"
            return DryRun("import first", never, (), 0, is_scratch=False)
        is_estimate = isinstance(stored, Unseen)
        reservation = _estimate(source, stored.size_bytes) if isinstance(stored, Unseen) else self._cache.reservation_for(stored)
        need: Need = self._cache.room.need(key, source, reservation)
        admission = self._cache.room.preview(need)
        verdict, reason = admission.verdict.value, admission.reason
        if is_estimate:
            verdict, reason = "import first", f"never imported here; if it takes what its artifact does, then {verdict}: {reason}"
        victims = tuple(self._uri(victim) for victim in admission.victims)
        return DryRun(verdict, reason, victims, need.total_bytes, admission.is_scratch, is_estimate)

    def _candidate(self, resident: Resident, view: MemoryView) -> Candidate:
        idle_s = view.rules.manners.now_s - resident.used_s
        frees = evict.freed_bytes(resident, view.holders)
        kind = (resident.is_scratch, resident.is_copy)
        return Candidate(self._uri(resident.key), resident.tenant, idle_s, frees, 1e3 * resident.worth, *kind)

    def _uri(self, key: ModelKey) -> str:
        copy = self._cache.copies.get(key)
        source = copy.source if copy else self._cache.source_of(key)
        return source.uri if source else key


def _estimate(source: ModelSource, size_bytes: int) -> Reservation:
    """Of an artifact that nobody has opened: that its weights are all that it holds, and shared with nobody."""
    return Reservation(Footprint(_OWN_BYTES, {}), {TensorDigest(source.uri): size_bytes})


def _spared_because(resident: Resident, view: MemoryView) -> str | None:
    if resident.leases:
        return f"{resident.leases} requests use it"
    if resident.is_pinned:
        return "it is pinned"
    floor = view.rules.manners.floors.get(resident.tenant)
    return f"its tenant has a floor of {floor} bytes" if floor else None
