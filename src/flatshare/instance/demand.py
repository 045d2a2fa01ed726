"""Step 5c: what is remembered of each model's requests, also when the model is not in memory: the basis of its worth.

One record per model that was ever asked for, the longest forgotten ones given up beyond `MOST`. The formulas are in policy/worth.py.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from flatshare.core.call import ModelSource
from flatshare.core.clock import Clock
from flatshare.core.ids import ModelKey
from flatshare.policy import thrash, worth
from flatshare.policy.thrash import LoadEvent, Thrash
from flatshare.policy.worth import Visits

MOST = 100_000
_UNKNOWN_RELOAD_S = 0.03  # the median cold start of a model that lies in the store
_SMOOTHING = 0.3
_MOMENTS = int(2 * thrash.WINDOW_S) + 1  # seconds of loads, that say whether the last two minutes were all above the limit
UNREADABLE = (OSError, orjson.JSONDecodeError, TypeError, KeyError)


@dataclass(frozen=True, slots=True)
class Known:
    """A model's address and its requests; a record for the disk."""

    source: ModelSource
    visits: Visits
    reload_s: float
    """What a load from this disk takes."""
    fetch_s: float = 0.0
    """What the way onto this disk took, if it was seen."""


@dataclass(frozen=True, slots=True)
class Record:
    """What an instance wrote down of a model, and how long ago it was asked for."""

    key: ModelKey
    known: Known
    age_s: float


class DemandBook:
    """Owned by the cache."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._models: OrderedDict[ModelKey, Known] = OrderedDict()
        self._evicted_s: dict[ModelKey, float] = {}
        self._causes: dict[ModelKey, str] = {}
        self._refused: dict[ModelKey, tuple[int, float]] = {}
        """What was not worth a fetch ahead: how often it had been asked for then, and when that was."""
        self._loads: deque[LoadEvent] = deque(maxlen=_MOMENTS)

    def visit(self, key: ModelKey, source: ModelSource, at_s: float | None = None) -> None:
        """A request came: now, or a little before, by the monotonic clock."""
        now_s = self._clock.monotonic_s() if at_s is None else at_s
        known = self._models.get(key)
        if known is None:
            self._models[key] = Known(source, Visits(now_s), _UNKNOWN_RELOAD_S)
            if len(self._models) > MOST:
                forgotten, _ = self._models.popitem(last=False)
                self._causes.pop(forgotten, None)
                self._refused.pop(forgotten, None)
        else:
            self._models[key] = replace(known, source=source, visits=worth.next_visit(known.visits, now_s))
            self._models.move_to_end(key)

    def loaded(self, key: ModelKey, took_s: float, fetch_s: float | None = None) -> None:
        """A load ended well, after so long: what it would take again from this disk; `fetch_s` more if it was not there yet."""
        now_s = self._clock.monotonic_s()
        known = self._models.get(key)
        if known is not None:
            reload_s = known.reload_s + _SMOOTHING * (took_s - known.reload_s)
            self._models[key] = replace(known, reload_s=reload_s, fetch_s=_learned(known.fetch_s, fetch_s))
        self._refused.pop(key, None)
        evicted_s = self._evicted_s.pop(key, None)
        self._note_cause(key, None if evicted_s is None else now_s - evicted_s)
        self._count_load(now_s, is_reload=evicted_s is not None and now_s - evicted_s < thrash.EVICTED_LATELY_S)

    def _count_load(self, now_s: float, *, is_reload: bool) -> None:
        moment_s = now_s // 1
        latest = self._loads.pop() if self._loads and self._loads[-1].at_s == moment_s else LoadEvent(moment_s, 0, 0)
        self._loads.append(LoadEvent(moment_s, latest.reloads + is_reload, latest.loads + 1))

    def _note_cause(self, key: ModelKey, evicted_ago_s: float | None) -> None:
        if evicted_ago_s is not None:
            self._causes[key] = f"evicted {evicted_ago_s:.0f} s before, for room"
        elif key in self._models:
            was_here = "it was unloaded, had expired, or its artifact is another one"
            self._causes[key] = was_here if key in self._causes else "first call on this instance"

    def cause(self, key: ModelKey) -> str:
        """Why the model had to be loaded when it was loaded last."""
        return self._causes.get(key, "")

    def evicted_models(self) -> list[ModelKey]:
        """Those that left for others and have not come back: what may be loaded again ahead of its callers."""
        return [key for key in self._evicted_s if key in self._models]

    def evicted(self, key: ModelKey) -> None:
        now_s = self._clock.monotonic_s()
        self._evicted_s[key] = now_s
        if len(self._evicted_s) > len(self._models) + 1_024:
            self._evicted_s = {k: at_s for k, at_s in self._evicted_s.items() if now_s - at_s < thrash.EVICTED_LATELY_S}

    def refused(self, key: ModelKey) -> None:
        """It was fetched ahead, and was not worth what would have left the disk for it."""
        if (known := self._models.get(key)) is not None:
            self._refused[key] = known.visits.requests, self._clock.monotonic_s()

    def may_be_worth_a_fetch(self, key: ModelKey) -> bool:
        """For the next request: False if it was not a moment ago, and has not been asked for much since."""
        known, refused = self._models.get(key), self._refused.get(key)
        if known is None or refused is None:
            return True
        requests, at_s = refused
        return worth.is_weighed_again(known.visits.requests, requests, self._clock.monotonic_s() - at_s)

    def worth(self, key: ModelKey, weight: float = 1.0) -> float:
        """What it is worth now to have the model in memory."""
        known, now_s = self._models.get(key), self._clock.monotonic_s()
        if known is None:
            return worth.worth(None, now_s, _UNKNOWN_RELOAD_S, weight)
        return worth.worth(known.visits, now_s, known.reload_s, weight)

    def reload_s(self, key: ModelKey, *, is_fetch: bool = False) -> float:
        """How long a load takes, as far as is known, with the way onto the disk if it is a fetch; zero if there was none."""
        known = self._models.get(key)
        if known is None:
            return 0.0
        return known.reload_s + (known.fetch_s if is_fetch else 0.0)

    def load_s(self, key: ModelKey) -> float:
        """How long a load from this disk is expected to take, whether or not there was one."""
        known = self._models.get(key)
        return _UNKNOWN_RELOAD_S if known is None else known.reload_s

    @property
    def thrash(self) -> Thrash:
        return thrash.observed(self._loads, self._clock.monotonic_s())

    @property
    def lacks_memory(self) -> bool:
        """The cache has thrashed for two minutes."""
        return thrash.is_capacity_signal(self._loads, self._clock.monotonic_s())

    def known(self) -> Mapping[ModelKey, Known]:
        return self._models

    def export(self, most: int) -> list[dict[str, object]]:
        """The models last asked for, as plain data with ages instead of times, since another process has another clock."""
        now_s = self._clock.monotonic_s()
        latest = list(self._models.items())[-most:]
        return [asdict(known) | {"key": key, "age_s": now_s - known.visits.last_s} for key, known in latest]

    def restore(self, key: ModelKey, known: Known, age_s: float) -> None:
        """What an earlier instance knew, unless we know better already."""
        if key in self._models:
            return
        then_s = self._clock.monotonic_s() - age_s
        self._models[key] = replace(known, visits=replace(known.visits, last_s=then_s))


def _learned(known_s: float, latest_s: float | None) -> float:
    """Zero is not known."""
    if latest_s is None:
        return known_s
    return known_s + _SMOOTHING * (latest_s - known_s) if known_s else latest_s


def records(path: Path, now_s: float) -> list[Record]:
    """What `export` gave to an instance that wrote it there. `now_s` is the wall clock's. Raises one of UNREADABLE."""
    elapsed_s = max(0.0, now_s - path.stat().st_mtime)
    return [_record(fields, elapsed_s) for fields in orjson.loads(path.read_bytes())]


def _record(fields: Mapping[str, Any], elapsed_s: float) -> Record:
    visits = fields["visits"] | {"faded": tuple(fields["visits"]["faded"])}
    known = Known(ModelSource(**fields["source"]), Visits(**visits), fields["reload_s"], fields.get("fetch_s", 0.0))
    return Record(ModelKey(fields["key"]), known, fields["age_s"] + elapsed_s)
