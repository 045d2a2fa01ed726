"""Did memory come back after an unload? If not, shrink the heap; if that does not help either, the instance has to be replaced."""

from enum import Enum

from flatshare.core.sizes import MIB

TOLERANCE = 32 * MIB
"""Between what the books say and what the kernel counts: fragments of the heap, buffers of requests under way."""
_BUSY_FACTOR = 2.0


class Remedy(Enum):
    NONE = "none"
    SHRINK = "shrink the heap"
    RECYCLE = "replace the instance"


def remedy(*, booked: int, measured: int, budget: int, recycle_share: float, is_quiet: bool, has_shrunk: bool) -> Remedy:
    """For private memory, in bytes. While requests run more is borne: it may be theirs, and come back."""
    excess = measured - booked
    if excess <= TOLERANCE:
        return Remedy.NONE
    if not has_shrunk:
        return Remedy.SHRINK if is_quiet else Remedy.NONE
    limit = budget * recycle_share * (1.0 if is_quiet else _BUSY_FACTOR)
    return Remedy.RECYCLE if excess > max(TOLERANCE, limit) else Remedy.NONE
