"""A signed control call changes something once. Seen again later, it is somebody else's copy of it."""

from collections import OrderedDict

from flatshare.core.clock import Clock
from flatshare.core.errors import RequestExpired
from flatshare.wire.sigv4 import SKEW_S

GRACE_S = 2.0
"""Signatures count in seconds: a client that makes the same call twice within one signs it alike both times (decision 0016)."""


class ReplayWindow:
    """The signatures of the last minutes, at most `size` of them: 100 bytes each. When it is full, the oldest is forgotten."""

    def __init__(self, clock: Clock, size: int = 50_000) -> None:
        self._clock = clock
        self._size = size
        self._first_s: OrderedDict[bytes, float] = OrderedDict()

    def require_new(self, signature: str) -> None:
        """Raises RequestExpired."""
        now_s = self._clock.monotonic_s()
        self._forget_before(now_s - 2 * SKEW_S)  # signed in the future as far as is admitted, it lives twice as long
        first_s = self._first_s.setdefault(bytes.fromhex(signature), now_s)
        if now_s - first_s > GRACE_S:
            raise RequestExpired(f"This request was received before, {now_s - first_s:.0f} s ago: sign a retry anew.")

    def __len__(self) -> int:
        return len(self._first_s)

    def _forget_before(self, horizon_s: float) -> None:
        while self._first_s and (len(self._first_s) >= self._size or next(iter(self._first_s.values())) < horizon_s):
            self._first_s.popitem(last=False)
