"""Step 4a: models that were under way when an instance died run one at a time; one that kills again and again is shut out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import orjson

from flatshare.core.clock import Clock
from flatshare.core.errors import Quarantined
from flatshare.core.ids import ModelKey
from flatshare.instance import board
from flatshare.policy import quarantine
from flatshare.policy.quarantine import Record
from flatshare.telemetry.log import get_logger

log = get_logger("quarantine")


class Quarantine:
    """Its records outlive the instance, in a file by the instance's name."""

    def __init__(self, folder: Path, name: str, clock: Clock) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{name}.suspects.json"
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._records = _read(self._path)
        for under_way in board.left_behind(folder, name):
            self._records = quarantine.after_death(self._records, under_way, clock.wall_s())
            log.warning("instance_had_died", under_way=sorted(under_way))
        if self._records:
            self._write()

    def guard(self, key: ModelKey) -> AbstractAsyncContextManager[None] | None:
        """Around all that is done with the model; None if nobody suspects it. Raises Quarantined if it is shut out."""
        record = self._records.get(key)
        return None if record is None else self._guarded(key, record)

    @asynccontextmanager
    async def _guarded(self, key: ModelKey, record: Record) -> AsyncIterator[None]:
        if quarantine.is_shut_out(record, self._clock.wall_s()):
            left_s = record.shut_out_until_s - self._clock.wall_s()
            raise Quarantined(
                f"this model was running alone among suspects when its instance died, {record.convictions} times: "
                f"it is shut out for another {left_s:.0f} s; correct the model, or remove it"
            )
        async with self._one_at_a_time:
            try:
                yield
            except Exception:  # whatever went wrong, the instance lives
                self._clear(key)
                raise
            self._clear(key)

    def records(self) -> dict[ModelKey, Record]:
        return dict(self._records)

    def _clear(self, key: ModelKey) -> None:
        record = self._records.get(key)
        if record is None:
            return
        rest = quarantine.cleared(record)
        if rest is None:
            del self._records[key]
        else:
            self._records[key] = rest
        self._write()

    def _write(self) -> None:
        fresh = self._path.with_suffix(".tmp")
        fresh.write_bytes(orjson.dumps({key: asdict(record) for key, record in self._records.items()}))
        fresh.replace(self._path)


def _read(path: Path) -> dict[ModelKey, Record]:
    try:
        return {ModelKey(key): Record(**fields) for key, fields in orjson.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError, AttributeError):
        log.warning("suspects_unreadable", path=str(path))
        return {}
