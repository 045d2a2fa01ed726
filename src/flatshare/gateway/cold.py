"""Which requests met a cold start, why, and how long they waited for it: the latest of them, for `flatshare report cold`."""

import time
from collections import deque
from typing import Any

from flatshare.core.ids import EndpointName, TargetModel

_KEPT = 1000
_MOST_KNOWN = 100_000


class ColdStarts:
    """Written after each answer, read by status reports. Bounded: the oldest go."""

    def __init__(self) -> None:
        self._latest: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._seen: dict[tuple[EndpointName, TargetModel], None] = {}

    def note(self, endpoint: EndpointName, target: TargetModel, waited_s: float, cause: str = "") -> None:
        """One answered call; `waited_s` is the time that it waited for a load, 0 if the model was in memory; `cause` by its instance."""
        key = (endpoint, target)
        is_first = key not in self._seen
        if is_first:
            self._seen[key] = None
            if len(self._seen) > _MOST_KNOWN:
                del self._seen[next(iter(self._seen))]
        if waited_s > 0:
            why = "first call since the server started" if is_first else cause or "evicted since its last call, or on another instance"
            self._latest.append(
                {"at_s": round(time.time(), 3), "endpoint": endpoint, "target": target, "waited_ms": round(1e3 * waited_s, 1), "why": why}
            )

    def report(self) -> list[dict[str, Any]]:
        """The oldest first."""
        return list(self._latest)
