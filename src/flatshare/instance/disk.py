"""Step 5b, the third ledger: what lies on this machine's disk, what each model there is worth, and what leaves for something new.

    packs, graphs, packages     by the catalog
    store/incoming/NAME         what a fetch that broke off left: it goes before any model does
    store/incoming/NAME.lock    held by an import under way; says in digits how many bytes it still counts on

Models leave by the same formula as those in memory (policy/worth.py), with the time that bringing them back takes: what the instances of
this machine remember of their requests (`*.hot.json`), times what fetch and import took when it was last done. With `order = "lru"` here
too the one that was used least recently goes.
"""

import fcntl
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TextIO

from flatshare.core.call import Urgency
from flatshare.core.clock import SystemClock
from flatshare.core.errors import DiskFull
from flatshare.core.ids import ArtifactUri, ModelDigest, ModelKey, TensorDigest, model_key
from flatshare.core.sizes import format_size
from flatshare.instance.demand import UNREADABLE, DemandBook, records
from flatshare.policy import evict, worth
from flatshare.policy.evict import Holders, Manners, Order, Resident, Shortage
from flatshare.policy.worth import Visits
from flatshare.store.catalog import CatalogedModel
from flatshare.store.tensors import TensorStore

_UNKNOWN_IMPORT_S = 1.0  # where no import was timed yet


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An artifact on its way."""

    uri: ArtifactUri
    size_bytes: int
    passing_bytes: int
    """What it takes besides while it is imported: itself once more, unless it lies on this disk already."""
    urgency: Urgency


class DiskRoom:
    """Made for one import. Models in `in_use` stay. `sent_away` are the artifacts that are no longer here because of it."""

    def __init__(self, store: TensorStore, budget_bytes: int, in_use: frozenset[ModelDigest], order: Order = Order.VALUE) -> None:
        self._order = order
        self._store = store
        self._budget_bytes = budget_bytes
        self._in_use = in_use
        self.sent_away: list[ArtifactUri] = []

    @contextmanager
    def reserved(self, newcomer: Newcomer, lock_path: Path) -> Iterator[None]:
        """Make room for it, and count it until it is in the catalog. `lock_path` is the lock that the caller holds. Raises DiskFull."""
        with self._alone():
            self._make(newcomer)
            lock_path.write_text(str(newcomer.size_bytes))
        try:
            yield
        finally:
            os.truncate(lock_path, 0)

    def settle(self, imported: ModelDigest) -> None:
        """Afterwards: what was imported may be larger than the artifact (16-bit weights are widened), so others may have to go."""
        self._in_use |= {imported}
        with self._alone():
            self._evict(Shortage(0, self._taken_bytes() - self._budget_bytes))

    def _make(self, newcomer: Newcomer) -> None:
        if not self._shortage(newcomer).is_over:
            self._remove_leftovers(model_key(newcomer.uri))
        if not (shortage := self._shortage(newcomer)).is_over and not self._evict(shortage, newcomer):
            raise DiskFull(
                f"the artifact has {format_size(newcomer.size_bytes)}, the disk budget is {format_size(self._budget_bytes)}: raise --disk"
            )
        lacking_bytes = newcomer.size_bytes + newcomer.passing_bytes - self._free_bytes()
        self._evict(Shortage(0, lacking_bytes), newcomer)  # if that is not enough, the write says so: what others have counts nothing

    def _shortage(self, newcomer: Newcomer) -> Shortage:
        return Shortage(0, self._taken_bytes() + newcomer.size_bytes - self._budget_bytes)

    def _taken_bytes(self) -> int:
        leftovers = sum(_size_of(folder) for folder in self._leftovers())
        return self._store.catalog.disk_bytes() + self._reserved_bytes() + leftovers

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._store.folder).free - self._reserved_bytes()

    def _reserved_bytes(self) -> int:
        """By the imports that are under way."""
        with os.scandir(self._store.incoming_dir) as entries:
            return sum(_reserved_by(Path(entry.path)) for entry in entries if entry.name.endswith(".lock"))

    def _leftovers(self) -> list[Path]:
        with os.scandir(self._store.incoming_dir) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir()]
        return [folder for folder in folders if _is_free(folder.with_suffix(".lock"))]

    def _remove_leftovers(self, but: ModelKey) -> None:
        for folder in self._leftovers():
            if folder.name != but:
                remove_if_nobody_imports(folder)

    def _evict(self, shortage: Shortage, newcomer: Newcomer | None = None) -> bool:
        """Send away the models worth least per byte until the shortage is over: False, and nobody goes, if all would not do."""
        if shortage.is_over:
            return True
        values = _Values(self._store)
        models = self._store.catalog.models()
        residents = [values.resident(model, is_in_use=model.manifest.digest in self._in_use) for model in models]
        holders = Holders(Counter(tensor for resident in residents for tensor in resident.tensors))
        victims = evict.choose(residents, holders, shortage, Manners(self._order))
        if victims is None:
            return False
        if newcomer is not None and newcomer.urgency is Urgency.AHEAD:
            self._require_worth(values.of(newcomer), sum(resident.worth for resident in residents if resident.key in victims))
        self._forget([uri for model in models if ModelKey(model.manifest.digest) in victims for uri in model.uris])
        return True

    def _forget(self, uris: list[str]) -> None:
        try:
            for uri in uris:
                self._store.catalog.forget_artifact(ArtifactUri(uri))
                self.sent_away.append(ArtifactUri(uri))
        except sqlite3.OperationalError as error:  # to forget something takes a few pages too
            raise DiskFull(f"the disk of {self._store.folder} is full to the last byte ({error}): free some space") from error
        self._store.collect()

    def _require_worth(self, worth_in: float, worth_out: float) -> None:
        if not worth.is_worth_a_prefetch(worth_in, worth_out):
            raise DiskFull("it is not worth what it would push off the disk: it is fetched for whoever can wait for it")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time on this machine looks and decides."""
        with (self._store.folder / "room.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _Values:
    """What a model on the disk saves: how often it is wanted, times how long it would take to bring it back."""

    def __init__(self, store: TensorStore) -> None:
        self._took_s = store.catalog.import_times()
        self._demand = DemandBook(SystemClock())
        for path in (store.folder / "instances").glob("*.hot.json"):
            with suppress(*UNREADABLE):  # its instance has gone, or will write it anew
                for record in records(path, now_s=time.time()):
                    self._demand.restore(record.key, record.known, record.age_s)
        self._now_s = SystemClock().monotonic_s()
        self._usual_s = median(self._took_s.values()) if self._took_s else _UNKNOWN_IMPORT_S

    def resident(self, model: CatalogedModel, *, is_in_use: bool) -> Resident:
        digest = model.manifest.digest
        took_s = self._took_s.get(digest, self._usual_s)
        visits = [self._visits(model_key(ArtifactUri(uri)), model.used_s) for uri in model.uris]
        used_s = max((visit.last_s for visit in visits), default=0.0)
        value = max((worth.worth(visit, self._now_s, took_s) for visit in visits), default=0.0)
        return Resident(ModelKey(digest), used_s, int(is_in_use), 0, _pieces(model), worth=value)

    def of(self, newcomer: Newcomer) -> float:
        known = self._demand.known().get(model_key(newcomer.uri))
        took_s = known.fetch_s if known and known.fetch_s else self._usual_s
        return worth.worth(known.visits if known else None, self._now_s, took_s)

    def _visits(self, key: ModelKey, loaded_s: float) -> Visits:
        """A model that no instance remembers was asked for once, when it was last loaded."""
        known = self._demand.known().get(key)
        return known.visits if known else Visits(self._now_s - (time.time() - loaded_s))


def _pieces(model: CatalogedModel) -> Mapping[TensorDigest, int]:
    """What the model has on the disk: tensors in packs, and files."""
    files = {TensorDigest(file.digest): file.size_bytes for file in model.manifest.files}
    return {**model.manifest.distinct_tensors, **files}


@contextmanager
def import_lock(path: Path, *, waits: bool = True) -> Iterator[TextIO]:
    """Hold the lock of one artifact's import. Raises BlockingIOError if another process does, and this one does not wait.

    Its holder removes it when there is nothing left to guard: so a lock that was waited for counts only if it is still in its place.
    """
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def remove_if_nobody_imports(incoming: Path) -> None:
    """What a fetch that broke off has left, and its lock."""
    path = incoming.with_suffix(".lock")
    with suppress(BlockingIOError), import_lock(path, waits=False):
        if incoming.exists():  # or another process has removed it first, and the lock is our own
            shutil.rmtree(incoming)
        path.unlink()


def _reserved_by(lock_path: Path) -> int:
    """Nothing, if its import is over: the lock is empty, free, or goes while we look."""
    with suppress(FileNotFoundError):
        if lock_path.stat().st_size and not _is_free(lock_path):
            return int(lock_path.read_text() or 0)
    return 0


def _is_free(lock_path: Path) -> bool:
    """Nobody holds it."""
    try:
        with lock_path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _size_of(folder: Path) -> int:
    """On the disk. Files and folders may go while we look."""
    return sum(_blocks_bytes(Path(place, name)) for place, folders, files in os.walk(folder) for name in (*folders, *files))


def _blocks_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
