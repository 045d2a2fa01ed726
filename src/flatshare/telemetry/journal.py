"""Say why: the last decisions, each with its reason, for the dashboard, `flatshare top` and whoever is on call."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision."""

    at_s: float
    """Seconds since the epoch."""
    kind: str
    """load · evict · unload · refuse · fail · give_up (nobody waited for the load any more) · import ·
    forget (it left the disk) · prepack · drop_copy (a prepacked copy came or went)"""
    model: str
    reason: str
    took_ms: float | None = None
    cause: str = ""
    """Why a model left, in one word: anonymous · mapped (the ledger that lacked room) · ceiling · scratch ·
    pressure · idle · shrunk · replaced · asked."""


class Journal:
    """Remembers the last `size` decisions and counts all of them by kind, and those by which a model left by cause."""

    def __init__(self, size: int = 512) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self.counts: dict[str, int] = {}
        self.evictions: dict[str, int] = {}

    def note(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.counts[entry.kind] = self.counts.get(entry.kind, 0) + 1
        if entry.cause:
            self.evictions[entry.cause] = self.evictions.get(entry.cause, 0) + 1

    def latest(self, count: int) -> list[Entry]:
        """Newest first."""
        return [self._entries[-1 - index] for index in range(min(count, len(self._entries)))]

    def about(self, model: str, count: int) -> list[Entry]:
        """The last ones on this model, newest first."""
        return [entry for entry in reversed(self._entries) if entry.model == model][:count]
