"""Who did what: a line of JSON for each change and for each denial, in files of bounded size.

Two series, so that a flood of denials cannot push the record of changes out of its files: `changes.jsonl` and `denials.jsonl`, each
with a fixed number of older ones beside it. A line is written before the caller hears the answer, so it outlives the process; changes
are forced to the disk once a second, so a power failure may cost the last second. Denials are left to the kernel.
"""

import asyncio
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from flatshare.telemetry.log import get_logger

log = get_logger("audit")
_SYNC_AFTER_S = 1.0
_KEPT = 8
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Deed:
    """One change, or one denial."""

    at_s: float
    who: str
    key_id: str
    action: str
    resources: tuple[str, ...]
    source: str
    """The peer's address."""
    result: str
    """`200`, or the status and code of the error."""
    request_id: str
    target_model: str | None = None
    reason: str = ""


class AuditLog:
    """Owned by the server."""

    def __init__(self, folder: Path, *, max_bytes: int = 16 * 2**20) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._changes = Series(folder / "changes.jsonl", max_bytes)
        self._denials = Series(folder / "denials.jsonl", max_bytes)
        self._sync: asyncio.TimerHandle | None = None

    def changed(self, deed: Deed) -> None:
        """For a server's event loop, which sees to the disk within a second."""
        self._changes.append(_line(deed))
        if self._sync is None:
            self._sync = asyncio.get_running_loop().call_later(_SYNC_AFTER_S, self._begin_sync)

    def changed_now(self, deed: Deed) -> None:
        """For a command, which ends: on the disk when this returns."""
        self._changes.append(_line(deed))
        self._changes.sync()

    def denied(self, deed: Deed) -> None:
        self._denials.append(_line(deed))

    def close(self) -> None:
        if self._sync is not None:
            self._sync.cancel()
        self._changes.sync()
        self._changes.close()
        self._denials.close()

    def _begin_sync(self) -> None:
        self._sync = None
        asyncio.get_running_loop().run_in_executor(None, self._changes.sync)


class Series:
    """A file that others of its name follow when it is full: NAME, NAME.1, … NAME.8, oldest last."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor = self._open()

    def append(self, line: bytes) -> None:
        """A log that cannot be written must not stop the server that it tells of: the line goes to the server's own log then."""
        try:
            if os.fstat(self._descriptor).st_size + len(line) > self._max_bytes:
                self._turn()
            os.write(self._descriptor, line)
        except OSError as error:
            log.error("audit_unwritable", path=str(self._path), reason=str(error), line=line.decode())

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            log.error("audit_not_on_disk", path=str(self._path), reason=str(error))

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _turn(self) -> None:
        for number in range(_KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        os.fsync(self._descriptor)
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        fresh = self._open()
        os.dup2(fresh, self._descriptor)  # the number stays, for a sync that is under way in a thread
        os.close(fresh)


def _line(deed: Deed) -> bytes:
    fields: dict[str, object] = {
        "at": datetime.fromtimestamp(deed.at_s, UTC).isoformat(timespec="milliseconds"),
        "who": deed.who,
        "key": deed.key_id,
        "action": deed.action,
        "resources": deed.resources,
        "source": deed.source,
        "result": deed.result,
        "request_id": deed.request_id,
    }
    if deed.target_model is not None:
        fields["target_model"] = deed.target_model[:_MAX_TEXT]
    if deed.reason:
        fields["reason"] = deed.reason[:_MAX_TEXT]
    return orjson.dumps(fields) + b"\n"
