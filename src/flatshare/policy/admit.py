"""May a model be loaded now? Memory is reserved before use, so the answer is decided before a byte is mapped.

memory = anonymous (base + workspaces + models; hard: beyond it the kernel kills) + mapped (distinct weights; soft: beyond it, refaults)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.core.sizes import format_size
from flatshare.policy import evict
from flatshare.policy.evict import Holders, Name, Resident, Shortage


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


@dataclass(frozen=True, slots=True)
class Need:
    """What one more model takes, as if it were alone."""

    own_bytes: int
    shared: Mapping[str, int]
    tensors: Mapping[TensorDigest, int]


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
    short_of: str = ""
    """The ledger that lacks room: anonymous, which is hard, before mapped."""


def decide(view: MemoryView, need: Need) -> Admission:
    """Admit, evict first, wait for a lease to end, or refuse for ever; with the reason as a sentence."""
    total = sum(need.tensors.values())
    if refusal := _never_fits(view, need.own_bytes + sum(need.shared.values()), total):
        return Admission(Verdict.NEVER_FITS, (), refusal)
    new = _unheld(need.tensors, view.holders.tensors)
    shortage = shortage_after(view, need.own_bytes + _unheld(need.shared, view.holders.shared), new)
    if shortage.is_over:
        return Admission(Verdict.ADMIT, (), f"{format_size(new)} new of {format_size(total)} mapped")
    # A victim may hold what the newcomer shares: then it comes free, and the newcomer brings it back. Count those as needed.
    holders = Holders(_with_newcomer(view.holders.tensors, need.tensors), _with_newcomer(view.holders.shared, need.shared))
    victims = evict.choose(view.residents, holders, shortage)
    lack = f"lacked {format_size(max(0, shortage.total_bytes))} in all, {format_size(max(0, shortage.anonymous_bytes))} anonymous"
    if victims is None:
        return Admission(Verdict.WAIT, (), f"{lack}, and every model that could make room is in use")
    return Admission(Verdict.EVICT_FIRST, victims, lack, "anonymous" if shortage.anonymous_bytes > 0 else "mapped")


def shortage_after(view: MemoryView, anonymous_bytes: int, mapped_bytes: int) -> Shortage:
    """What would be lacking after so much more of each."""
    anonymous = view.anonymous + anonymous_bytes
    return Shortage(anonymous - view.anonymous_limit, anonymous + view.mapped + mapped_bytes - view.memory_limit)


def _unheld(wanted: Mapping[Name, int], holders: Mapping[Name, int]) -> int:
    """Bytes of what nobody holds yet."""
    return sum(size for name, size in wanted.items() if name not in holders)


def _with_newcomer(holders: Mapping[Name, int], wanted: Mapping[Name, int]) -> dict[Name, int]:
    return {name: count + (name in wanted) for name, count in holders.items()}


def _never_fits(view: MemoryView, anonymous_bytes: int, mapped_bytes: int) -> str | None:
    room = view.anonymous_limit - view.base_anonymous
    if anonymous_bytes > room:
        needed = format_size(anonymous_bytes)
        return f"the model needs {needed} of private memory, an empty instance has {format_size(max(0, room))}: raise --memory"
    room = view.memory_limit - view.base_anonymous - anonymous_bytes
    if mapped_bytes > room:
        weights = format_size(mapped_bytes)
        return f"the model's weights are {weights}, an empty instance has room for {format_size(max(0, room))}: raise --memory"
    return None
