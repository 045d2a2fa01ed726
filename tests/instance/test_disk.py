"""The third ledger: the disk keeps what is worth most, counts what is on its way, and stays within its budget."""

import fcntl
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest

from flatshare.core.call import ModelSource, Urgency
from flatshare.core.clock import ManualClock
from flatshare.core.errors import DiskFull
from flatshare.core.ids import ArtifactUri, ModelDigest, model_key
from flatshare.instance import disk
from flatshare.instance.demand import DemandBook
from flatshare.instance.disk import import_lock
from flatshare.instance.importing import ImportJob, import_artifact
from flatshare.policy.evict import Order
from flatshare.store.sources import probe
from flatshare.store.tensors import TensorStore
from tests.checkpoints import random_weights, write_checkpoint
from tests.contract.packages import write_model
from tests.instance.conftest import AN_OLDER_FORM

NOBODY: frozenset[ModelDigest] = frozenset()
PLENTY = 10**9


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


@pytest.fixture
def three(store: TensorStore, tmp_path: Path) -> list[Path]:
    """Models on the disk, used one after the other, an hour apart, each as quick to bring back as the others."""
    folders = [write_checkpoint(tmp_path / f"models/m{seed}", seed=seed) for seed in range(3)]
    for age_h, folder in zip((3, 2, 1), folders, strict=True):
        digest = bring(store, folder)
        store.catalog.touch(digest, time.time() - 3600 * age_h)
        store.catalog.remember_import(digest, 1.0)
    return folders


def uri_of(folder: Path) -> ArtifactUri:
    return ArtifactUri(f"file://{folder}")


def bring(store: TensorStore, folder: Path, budget: int = PLENTY, urgency: Urgency = Urgency.DEMAND) -> ModelDigest:
    return import_artifact(ImportJob(store.folder, uri_of(folder), f"file://{folder.parent}", budget, NOBODY, urgency)).digest


def kept(store: TensorStore) -> set[str]:
    return {Path(uri).name for uri in store.catalog.artifacts()}


def one_more_must_go(store: TensorStore) -> int:
    """A budget for what is there: who comes new pushes another out, which is about as large."""
    return store.catalog.disk_bytes() + 15_000


def remembered(store: TensorStore, folders: Sequence[Path], *, every_s: float = 60.0, fetch_s: Mapping[Path, float] | None = None) -> None:
    """An instance that was asked for these models once in a while, until now."""
    clock = ManualClock()
    book = DemandBook(clock)
    for _ in range(5):
        for folder in folders:
            book.visit(model_key(uri_of(folder)), ModelSource(uri_of(folder), f"file://{folder.parent}"))
        clock.advance(every_s)
    for folder, took_s in (fetch_s or {}).items():
        book.loaded(model_key(uri_of(folder)), 0.01, took_s)
    (store.folder / "instances").mkdir(exist_ok=True)
    (store.folder / "instances/one.hot.json").write_bytes(orjson.dumps(book.export(100)))


class TestWhoLeaves:
    def test_among_equals_the_one_used_longest_ago(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), one_more_must_go(store))
        assert kept(store) == {"m1", "m2", "new"}

    def test_a_model_that_an_instance_is_asked_for_stays_although_it_was_loaded_long_ago(
        self, store: TensorStore, three: list[Path], tmp_path: Path
    ) -> None:
        remembered(store, three[:1])
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), one_more_must_go(store))
        assert "m0" in kept(store)
        assert len(kept(store)) == 3

    def test_of_models_equally_wanted_the_one_that_is_brought_back_soonest(
        self, store: TensorStore, three: list[Path], tmp_path: Path
    ) -> None:
        remembered(store, three)
        quick = store.catalog.model_of(uri_of(three[2]), _version(three[2]))
        assert quick is not None
        store.catalog.remember_import(quick, 0.01)
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), one_more_must_go(store))
        assert kept(store) == {"m0", "m1", "new"}

    def test_a_fetch_is_timed_and_its_time_goes_with_the_model(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        digest = bring(store, write_checkpoint(tmp_path / "models/new", seed=9))
        assert store.catalog.import_times()[digest] > 0
        store.catalog.forget_artifact(uri_of(tmp_path / "models/new"))
        store.collect()
        assert digest not in store.catalog.import_times()

    @pytest.mark.parametrize("left", [b"[1]", AN_OLDER_FORM])
    def test_what_a_broken_or_older_instance_left_is_passed_over(
        self, store: TensorStore, three: list[Path], tmp_path: Path, left: bytes
    ) -> None:
        (store.folder / "instances").mkdir()
        (store.folder / "instances/bad.hot.json").write_bytes(left)
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), one_more_must_go(store))
        assert kept(store) == {"m1", "m2", "new"}

    def test_by_lru_the_one_that_was_asked_for_longest_ago_whatever_it_takes_to_bring_back(
        self, store: TensorStore, three: list[Path], tmp_path: Path
    ) -> None:
        remembered(store, three[:1])
        slow = store.catalog.model_of(uri_of(three[1]), _version(three[1]))
        assert slow is not None
        store.catalog.remember_import(slow, 1_000.0)
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        job = ImportJob(store.folder, uri_of(new), f"file://{new.parent}", one_more_must_go(store), NOBODY, order=Order.LRU)
        assert import_artifact(job).sent_away == (uri_of(three[1]),)


class TestAhead:
    def test_what_is_known_to_take_long_to_fetch_is_worth_more(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        remembered(store, [*three, new], fetch_s={new: 3.0})
        bring(store, new, one_more_must_go(store), Urgency.AHEAD)
        assert "new" in kept(store)

    def test_what_nobody_waits_for_pushes_out_nothing_that_is_worth_as_much(
        self, store: TensorStore, three: list[Path], tmp_path: Path
    ) -> None:
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        remembered(store, [*three, new])
        with pytest.raises(DiskFull, match="for whoever can wait"):
            bring(store, new, one_more_must_go(store), Urgency.AHEAD)
        assert kept(store) == {"m0", "m1", "m2"}

    def test_it_pushes_out_what_is_worth_much_less(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        remembered(store, [*three[1:], new])
        store.catalog.touch(next(m.manifest.digest for m in store.catalog.models() if m.uris == (uri_of(three[0]),)), 1.0)
        bring(store, new, one_more_must_go(store), Urgency.AHEAD)
        assert kept(store) == {"m1", "m2", "new"}

    def test_with_room_it_just_comes(self, store: TensorStore, tmp_path: Path) -> None:
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), PLENTY, Urgency.AHEAD)
        assert kept(store) == {"new"}


class TestWhatIsCounted:
    def test_an_import_under_way_elsewhere_is_counted_by_what_it_reserved(self, store: TensorStore, tmp_path: Path) -> None:
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        with (store.incoming_dir / "other.lock").open("w") as other:
            other.write(str(PLENTY))
            other.flush()
            bring(store, write_checkpoint(tmp_path / "models/before", seed=8), PLENTY)  # nobody holds the lock: it is a dead one's
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(DiskFull, match="raise --disk"):
                bring(store, new, PLENTY)
        bring(store, new, PLENTY)

    def test_what_an_importer_had_reserved_when_it_was_killed_does_not_count_against_the_next(
        self, store: TensorStore, tmp_path: Path
    ) -> None:
        new = write_checkpoint(tmp_path / "models/new", seed=9)
        (store.incoming_dir / f"{model_key(uri_of(new))}.lock").write_text(str(PLENTY))
        bring(store, new, PLENTY)
        assert kept(store) == {"new"}

    def test_what_a_broken_fetch_left_goes_before_any_model(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        left = store.incoming_dir / "abandoned"
        left.mkdir()
        (left / "part").write_bytes(os.urandom(100_000))
        budget = store.catalog.disk_bytes() + 120_000
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), budget)
        assert not left.exists()
        assert kept(store) == {"m0", "m1", "m2", "new"}

    def test_widened_weights_are_counted_as_what_they_became(self, store: TensorStore, three: list[Path], tmp_path: Path) -> None:
        half = write_checkpoint(tmp_path / "models/half", tensors={n: t.astype(np.float16) for n, t in random_weights(7).items()})
        budget = store.catalog.disk_bytes() + (half / "model.safetensors").stat().st_size + 12_000
        bring(store, half, budget)
        assert "half" in kept(store)
        assert store.catalog.disk_bytes() <= budget
        assert len(kept(store)) == 3

    def test_a_disk_smaller_than_its_budget_sends_away_what_is_worth_least(
        self, store: TensorStore, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real thing, a small disk, is in tests/chaos; it needs root."""
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10_000))
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9))
        assert kept(store) == {"m1", "m2", "new"}

    def test_the_files_of_an_import_under_way_are_no_leftovers(self, store: TensorStore, tmp_path: Path) -> None:
        package, new = write_model(tmp_path / "models/package"), write_checkpoint(tmp_path / "models/new", seed=9)
        with ThreadPoolExecutor(1) as pool:
            with (store.folder / "import.lock").open("a") as writing:
                fcntl.flock(writing, fcntl.LOCK_EX)  # the import stops before it takes the package apart
                importing = pool.submit(bring, store, package)
                deadline_s = time.monotonic() + 20
                while not (places := list(store.incoming_dir.rglob("split-*"))):
                    assert time.monotonic() < deadline_s
                with pytest.raises(DiskFull):
                    bring(store, new, 1)
                assert all(place.is_dir() for place in places)
            importing.result(timeout=20)
        assert kept(store) == {"package"}

    @pytest.mark.parametrize("seen_last", ["its name", "that it is held"])
    def test_a_lock_that_goes_with_its_import_while_it_is_looked_at_counts_nothing(
        self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_last: str
    ) -> None:
        gone, is_free = store.incoming_dir / "gone.lock", disk._is_free

        def let_go(path: Path) -> bool:
            if path != gone:
                return is_free(path)
            path.unlink()
            return False

        if seen_last == "its name":
            gone.symlink_to(tmp_path / "nowhere")  # listed, and not there when it is asked for its size
        else:
            gone.write_text(str(PLENTY))
            monkeypatch.setattr(disk, "_is_free", let_go)
        bring(store, write_checkpoint(tmp_path / "models/new", seed=9), PLENTY)
        assert kept(store) == {"new"}

    def test_leftovers_that_go_while_their_files_are_counted_count_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "left/files/deeper").mkdir(parents=True)
        count = disk._blocks_bytes

        def removed_first(path: Path) -> int:
            shutil.rmtree(tmp_path / "left", ignore_errors=True)
            return count(path)

        monkeypatch.setattr(disk, "_blocks_bytes", removed_first)
        assert disk._size_of(tmp_path / "left") == 0

    def test_leftovers_that_another_has_removed_leave_no_lock(self, store: TensorStore) -> None:
        disk.remove_if_nobody_imports(store.incoming_dir / "gone")
        assert list(store.incoming_dir.iterdir()) == []

    def test_no_lock_is_left_when_its_import_is_over(self, store: TensorStore, three: list[Path]) -> None:
        assert list(store.incoming_dir.iterdir()) == [], "thousands of them would be looked at for every import"

    def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a.lock"
        with ThreadPoolExecutor(1) as pool:
            with import_lock(path):
                waiting = pool.submit(_held, path)
                deadline_s = time.monotonic() + 20
                while not _is_waited_for(path):
                    assert time.monotonic() < deadline_s
                path.unlink()
            assert waiting.result(timeout=20), "what it held was the lock that others find"

    def test_who_does_not_wait_for_a_lock_hears_that_it_is_held(self, tmp_path: Path) -> None:
        with import_lock(tmp_path / "a.lock"), pytest.raises(BlockingIOError), import_lock(tmp_path / "a.lock", waits=False):
            pass


def _held(path: Path) -> bool:
    with import_lock(path) as file:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _is_waited_for(path: Path) -> bool:
    """By what the kernel says: `1: -> FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF`."""
    inode = f":{path.stat().st_ino} "
    return any("-> FLOCK" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def _version(folder: Path) -> str:
    return probe(uri_of(folder), root=f"file://{folder.parent}").version
