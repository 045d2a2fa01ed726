"""May a model be loaded now? Memory is reserved before use, so the answer is decided before a byte is mapped.

memory = anonymous (base + workspaces + models; hard: beyond it the kernel kills) + mapped (distinct weights; soft: beyond it, refaults)

    fits ─────────────────────────────────────────────▶ ADMIT
    does not: all-resident mode, no copies to spare ──▶ NEVER_FITS
    does not: victims that are worth less ────────────▶ EVICT_FIRST, then ADMIT
    does not: victims that are worth more ────────────▶ the scratch slot: ADMIT there, pushing out only what lies in it
    does not: whoever could make room is in use ──────▶ WAIT
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from operator import attrgetter

from flatshare.core.ids import NOBODY, ModelKey, Tenant, TensorDigest
from flatshare.core.sizes import format_size
from flatshare.policy import evict
from flatshare.policy.evict import Holders, Manners, Name, Resident, Shortage


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has decided."""

    manners: Manners = evict.PLAIN
    is_all_resident: bool = False
    scratch_bytes: int = 0
    """Of the memory: kept for models that are worth less than what they would push out."""
    ceilings: Mapping[Tenant, int] = field(default_factory=dict)
    """Bytes that a tenant's models may take together."""


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The instance's books at one moment. All in bytes."""

    memory_limit: int
    anonymous_limit: int
    base_anonymous: int
    """What the process takes with no model at all."""
    anonymous: int
    """Base plus what the residents have reserved."""
    mapped: int
    """Distinct weight bytes of the residents."""
    residents: tuple[Resident, ...]
    holders: Holders
    rules: Rules = field(default_factory=Rules)
    pressure: int = 0
    """Of the memory limit: not to be used for the moment. It makes nobody too large for ever."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one more model takes, as if it were alone."""

    own_bytes: int
    shared: Mapping[str, int]
    tensors: Mapping[TensorDigest, int]
    tenant: Tenant = NOBODY
    worth: float = float("inf")
    """As `Resident.worth`; whoever does not say goes before everybody."""

    @property
    def total_bytes(self) -> int:
        return self.own_bytes + sum(self.shared.values()) + sum(self.tensors.values())


class Verdict(Enum):
    ADMIT = "admit"
    EVICT_FIRST = "evict first"
    WAIT = "wait"
    NEVER_FITS = "never fits"


@dataclass(frozen=True, slots=True)
class Admission:
    verdict: Verdict
    victims: tuple[ModelKey, ...]
    reason: str
    is_scratch: bool = False
    is_own_limit: bool = False
    """If it waits: only for its own tenant's models, so it must not hold up others."""
    short_of: str = ""
    """If it evicts, what lacks room: anonymous, which is hard, before mapped; or the tenant's ceiling."""


def decide(view: MemoryView, need: Need) -> Admission:
    """Admit, evict first, wait for a lease to end, or refuse for ever; with the reason as a sentence."""
    if refusal := _never_fits(view, need):
        return Admission(Verdict.NEVER_FITS, (), refusal)
    if (over := _over_ceiling(view, need)) is not None:
        return over
    shortage = _shortage(_main(view), need)
    if shortage.is_over:
        return _admitted(view, need)
    lack = f"lacked {format_size(max(0, shortage.total_bytes))} in all, {format_size(max(0, shortage.anonymous_bytes))} anonymous"
    if view.rules.is_all_resident and need.total_bytes:
        if (victims := evict.choose(filter(attrgetter("is_copy"), view.residents), view.holders, shortage)) is not None:
            return Admission(Verdict.EVICT_FIRST, victims, lack, short_of="anonymous")
        reason = f"{lack}, and in all-resident mode nothing is evicted: raise --memory, or unload a model"
        return Admission(Verdict.NEVER_FITS, (), reason)
    return _displacing(view, need, shortage, lack)


def at_once(view: MemoryView, need: Need) -> Admission | None:
    """What `decide` says if there is room without anybody leaving. Looks at no resident, of which there may be thousands."""
    if need.tenant in view.rules.ceilings or _never_fits(view, need) or not _shortage(_main(view), need).is_over:
        return None
    return _admitted(view, need)


def _main(view: MemoryView) -> MemoryView:
    """Without the scratch slot."""
    return replace(view, memory_limit=view.memory_limit - view.rules.scratch_bytes)


def _admitted(view: MemoryView, need: Need) -> Admission:
    new = _unheld(need.tensors, view.holders.tensors)
    return Admission(Verdict.ADMIT, (), f"{format_size(new)} new of {format_size(sum(need.tensors.values()))} mapped")


def _displacing(view: MemoryView, need: Need, shortage: Shortage, lack: str) -> Admission:
    """Who leaves for the newcomer, or where else it may go."""
    # A victim may hold what the newcomer shares: then it comes free, and the newcomer brings it back. Count those as needed.
    holders = Holders(_with_newcomer(view.holders.tensors, need.tensors), _with_newcomer(view.holders.shared, need.shared))
    manners = replace(view.rules.manners, requester=need.tenant)
    victims = evict.choose(view.residents, holders, shortage, manners)
    if victims is None or _are_worth_more(victims, view.residents, need):
        scratch = _into_scratch(view, need, holders, manners)
        if scratch is not None:
            return scratch
    if victims is None:
        return Admission(Verdict.WAIT, (), f"{lack}, and every model that could make room is in use")
    return Admission(Verdict.EVICT_FIRST, victims, lack, short_of="anonymous" if shortage.anonymous_bytes > 0 else "mapped")


def shortage_after(view: MemoryView, anonymous_bytes: int, mapped_bytes: int) -> Shortage:
    """What would be lacking after so much more of each."""
    anonymous = view.anonymous + anonymous_bytes
    return Shortage(anonymous - view.anonymous_limit, anonymous + view.mapped + mapped_bytes - view.memory_limit + view.pressure)


def _shortage(view: MemoryView, need: Need) -> Shortage:
    anonymous_bytes = need.own_bytes + _unheld(need.shared, view.holders.shared)
    return shortage_after(view, anonymous_bytes, _unheld(need.tensors, view.holders.tensors))


def held_bytes(residents: tuple[Resident, ...]) -> int:
    """Distinct bytes of these models: what a tenant's models take together."""
    tensors: dict[TensorDigest, int] = {}
    shared: dict[str, int] = {}
    for resident in residents:
        tensors.update(resident.tensors)
        shared.update(resident.shared)
    return sum(tensors.values()) + sum(shared.values()) + sum(resident.anonymous_bytes for resident in residents)


def _over_ceiling(view: MemoryView, need: Need) -> Admission | None:
    """A tenant at its ceiling makes room among its own models, however much is free. None if it is below."""
    ceiling = view.rules.ceilings.get(need.tenant)
    if ceiling is None:
        return None
    own = tuple(resident for resident in view.residents if resident.tenant == need.tenant)
    newcomer = Resident(ModelKey(""), 0, 0, need.own_bytes, need.tensors, need.shared)
    over = held_bytes((*own, newcomer)) - ceiling
    if over <= 0:
        return None
    tensors = Counter(name for resident in (*own, newcomer) for name in resident.tensors)
    shared = Counter(name for resident in (*own, newcomer) for name in resident.shared)
    victims = evict.choose(own, Holders(tensors, shared), Shortage(0, over), replace(view.rules.manners, requester=need.tenant))
    lack = f"tenant {need.tenant} would exceed its ceiling of {format_size(ceiling)} by {format_size(over)}"
    if victims is None:
        return Admission(Verdict.WAIT, (), f"{lack}, and its other models are in use", is_own_limit=True)
    return Admission(Verdict.EVICT_FIRST, victims, lack, short_of="ceiling")


def _are_worth_more(victims: tuple[ModelKey, ...], residents: tuple[Resident, ...], need: Need) -> bool:
    leaving = frozenset(victims)
    return sum(resident.worth for resident in residents if resident.key in leaving) > need.worth


def _into_scratch(view: MemoryView, need: Need, holders: Holders, manners: Manners) -> Admission | None:
    """Room in the scratch slot, pushing out only what lies there; None if it is too small, or lent out."""
    if not view.rules.scratch_bytes:
        return None
    shortage = _shortage(view, need)
    lodgers = tuple(resident for resident in view.residents if resident.is_scratch)
    victims = evict.choose(lodgers, holders, shortage, manners)
    if victims is None:
        return None
    reason = "worth less than what it would push out: served from the scratch slot"
    return Admission(Verdict.EVICT_FIRST if victims else Verdict.ADMIT, victims, reason, is_scratch=True, short_of="scratch")


def _unheld(wanted: Mapping[Name, int], holders: Mapping[Name, int]) -> int:
    """Bytes of what nobody holds yet."""
    return sum(size for name, size in wanted.items() if name not in holders)


def _with_newcomer(holders: Mapping[Name, int], wanted: Mapping[Name, int]) -> dict[Name, int]:
    return {name: count + (name in wanted) for name, count in holders.items()}


def _never_fits(view: MemoryView, need: Need) -> str | None:
    anonymous_bytes, mapped_bytes = need.own_bytes + sum(need.shared.values()), sum(need.tensors.values())
    room = view.anonymous_limit - view.base_anonymous
    if anonymous_bytes > room:
        needed = format_size(anonymous_bytes)
        return f"the model needs {needed} of private memory, an empty instance has {format_size(max(0, room))}: raise --memory"
    room = view.memory_limit - view.rules.scratch_bytes - view.base_anonymous - anonymous_bytes
    if mapped_bytes > room:
        weights = format_size(mapped_bytes)
        return f"the model's weights are {weights}, an empty instance has room for {format_size(max(0, room))}: raise --memory"
    ceiling = view.rules.ceilings.get(need.tenant)
    if ceiling is not None and need.total_bytes > ceiling:
        total = format_size(need.total_bytes)
        return f"the model needs {total}, tenant {need.tenant} may take {format_size(ceiling)}: raise its ceiling"
    return None
