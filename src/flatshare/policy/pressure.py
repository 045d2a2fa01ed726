"""How much of its budget may an instance use at this moment? Less when the machine, or the cgroup, runs short of memory from outside.

    may hold = what we hold privately + what is available - a reserve

*Available* counts page cache, since the kernel takes that back: so our mapped weights are in it, and the formula holds for private and
mapped bytes together. It shrinks at once, before the kernel has to act, and grows back slowly, so that it does not swing.
"""

from dataclasses import dataclass

from flatshare.core.sizes import MIB

RESERVE_SHARE, LEAST_RESERVE = 0.05, 64 * MIB
GROWTH_SHARE = 0.1  # of the budget, a second
STALLED_PERCENT = 20.0
"""Of the time some task waited for memory, over the last ten seconds (PSI)."""
STALL_SHARE = 0.1  # of the budget, given up a second while tasks stall
LEAST_STALLED_SHARE = 0.5  # of the budget: stalls alone, which others may cause, take no more
MANY_REFAULTS_PER_S = 64 * MIB // 4096


@dataclass(frozen=True, slots=True)
class Signs:
    """What the kernel says, in bytes; for the tightest of the machine and the cgroups that we are in."""

    total: int
    available: int
    stalled_percent: float = 0.0
    refaults_per_s: float = 0.0
    """File pages that were evicted and are read again: the page cache is too small for who uses it."""
    free: int = 0
    """Used by nobody, not even as page cache."""
    major_faults_per_s: float = 0.0
    """Of this process: how often a run had to wait for pages of its weights. Only shown: the first runs of a model have them too."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be used of the budget now."""

    bytes: int
    is_tight: bool
    """No new loads: every byte of them would have to be taken from somebody."""
    reason: str


def reserve_of(total: int) -> int:
    return max(LEAST_RESERVE, int(total * RESERVE_SHARE))


def allowance(signs: Signs, *, budget: int, private: int, before: int, elapsed_s: float) -> Allowance:
    """`private` is what the instance holds in private memory, `before` what it was allowed at the last look."""
    reserve = reserve_of(signs.total)
    room = private + signs.available - reserve
    is_tight = signs.available < reserve // 2
    stalls = signs.stalled_percent >= STALLED_PERCENT or signs.refaults_per_s >= MANY_REFAULTS_PER_S
    if stalls and signs.free < reserve:  # with memory to spare, tasks wait for the disk: to give up models would not help them
        slower = max(before - int(budget * STALL_SHARE * elapsed_s), min(before, int(budget * LEAST_STALLED_SHARE)))
        allowed = min(room, slower)
        return Allowance(max(0, min(budget, allowed)), is_tight, _stall(signs))
    allowed = max(0, min(budget, room, before + int(budget * GROWTH_SHARE * elapsed_s)))
    reason = "" if allowed >= budget else f"{signs.available // MIB} MiB are available beside us, {reserve // MIB} are left to others"
    return Allowance(allowed, is_tight, reason)


def _stall(signs: Signs) -> str:
    if signs.stalled_percent >= STALLED_PERCENT:
        return f"tasks wait for memory {signs.stalled_percent:.0f} % of the time"
    return f"{signs.refaults_per_s:.0f} evicted file pages a second are read again"
