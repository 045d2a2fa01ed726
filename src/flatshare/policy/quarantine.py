"""Which model killed the instance? Those that were under way are suspects, and run one at a time until each has shown that it is harmless.

under way at a death ─▶ suspect ──a run or load ends well──▶ cleared
└─ under way at a death again, alone among suspects: convicted; at the second time it is shut out,
for ten minutes, then twice as long each time
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flatshare.core.ids import ModelKey

CONVICTIONS = 2
"""An instance may be killed by others (the kernel, an operator) in the very moment of a run: once proves nothing."""
_FIRST_S, _LONGEST_S = 600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Record:
    """What is held against a model. Times are seconds since the epoch."""

    is_suspect: bool = True
    convictions: int = 0
    shut_out_until_s: float = 0.0


def after_death(records: Mapping[ModelKey, Record], under_way: frozenset[ModelKey], now_s: float) -> dict[ModelKey, Record]:
    """The records after an instance died with these under way."""
    suspects = [key for key in under_way if key in records and records[key].is_suspect]
    changed = dict(records)
    if len(suspects) == 1:
        changed[suspects[0]] = _convicted(records[suspects[0]], now_s)
    for key in under_way - frozenset(suspects):
        changed[key] = replace(records.get(key, Record()), is_suspect=True)
    return changed


def cleared(record: Record) -> Record | None:
    """After a run that ended well; None if nothing is held against it any more."""
    return replace(record, is_suspect=False) if record.convictions >= CONVICTIONS else None


def is_shut_out(record: Record, now_s: float) -> bool:
    return record.convictions >= CONVICTIONS and now_s < record.shut_out_until_s


def _convicted(record: Record, now_s: float) -> Record:
    count = record.convictions + 1
    shut_s = min(_LONGEST_S, _FIRST_S * 2 ** (count - CONVICTIONS)) if count >= CONVICTIONS else 0.0
    return Record(is_suspect=True, convictions=count, shut_out_until_s=now_s + shut_s)
