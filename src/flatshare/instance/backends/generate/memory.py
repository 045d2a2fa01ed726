"""Memory for keys and values: reserved before it is used, and bounded for all models of the instance together."""

from collections import OrderedDict
from dataclasses import dataclass

from flatshare.instance.backends.generate.rows import Snapshot

_MOST_SESSIONS = 4096


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Of one model and one session name: no two tenants share a model here, not even if their weights are equal."""

    model: int
    session: str


class CacheMemory:
    """Rows have first call on it; what they leave, sessions fill, and give back when rows need it. One thread's."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.row_bytes = 0
        self.session_bytes = 0
        self._sessions: OrderedDict[SessionKey, Snapshot] = OrderedDict()

    def reserve(self, size_bytes: int) -> bool:
        """Whether there was room; sessions make way, the longest unused first."""
        if self.row_bytes + size_bytes > self.limit_bytes:
            return False
        self.row_bytes += size_bytes
        self._fit()
        return True

    def give_back(self, size_bytes: int) -> None:
        self.row_bytes -= size_bytes

    def recall(self, key: SessionKey) -> Snapshot | None:
        known = self._sessions.get(key)
        if known is not None:
            self._sessions.move_to_end(key)
        return known

    def remember(self, key: SessionKey, snapshot: Snapshot) -> None:
        self._drop(key)
        if self.row_bytes + snapshot.size_bytes <= self.limit_bytes:
            self._sessions[key] = snapshot
            self.session_bytes += snapshot.size_bytes
            self._fit()

    def forget_model(self, model: int) -> None:
        for key in [key for key in self._sessions if key.model == model]:
            self._drop(key)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def check(self) -> None:
        """The identity that holds after every step."""
        assert self.session_bytes == sum(snapshot.size_bytes for snapshot in self._sessions.values()), (
            "sessions do not add up. This is a bug."
        )
        assert 0 <= self.row_bytes <= self.limit_bytes, "more was lent than there is. This is a bug."
        assert self.row_bytes + self.session_bytes <= self.limit_bytes, "more is held than there is. This is a bug."

    def _fit(self) -> None:
        while self._sessions and (self.row_bytes + self.session_bytes > self.limit_bytes or len(self._sessions) > _MOST_SESSIONS):
            self._drop(next(iter(self._sessions)))

    def _drop(self, key: SessionKey) -> None:
        gone = self._sessions.pop(key, None)
        if gone is not None:
            self.session_bytes -= gone.size_bytes
