"""The tensor store: each tensor once, all of an import or nothing, and back in order after any accident."""

import errno
import gc
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest

from flatshare.core.errors import BadPackage, DiskFull
from flatshare.core.ids import ArtifactUri
from flatshare.core.spec import StoredModel
from flatshare.store import tensors as module
from flatshare.store.mapping import MapPool
from flatshare.store.tensors import PAGE, TensorStore
from tests.checkpoints import CONFIG, Tensors, import_folder, imported, random_weights, write_checkpoint

BIG = {**CONFIG, "hidden_size": 64, "intermediate_size": 256}


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def tensors_of(stored: StoredModel) -> Tensors:
    pool = MapPool()
    places = {t.name: (stored.places[t.digest], t) for t in stored.manifest.tensors}
    packs = Path(stored.packs_dir)
    return {name: pool.get(packs / f"{p.pack}.pack").tensor(p.offset, t.shape, t.size_bytes) for name, (p, t) in places.items()}


def files_of(store: TensorStore) -> set[str]:
    return {path.name for folder in (store.packs_dir, store.blobs_dir) for path in folder.iterdir()}


def forget(store: TensorStore, folder: Path) -> None:
    assert store.catalog.forget_artifact(ArtifactUri(f"file://{folder}"))


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", *map(str, args)]


def test_large_tensors_begin_on_a_page_and_small_ones_on_a_cache_line(store: TensorStore, tmp_path: Path) -> None:
    stored = imported(store, write_checkpoint(tmp_path / "a", config=BIG))
    sizes = {tensor.digest: tensor.size_bytes for tensor in stored.manifest.tensors}
    assert {size >= PAGE for size in sizes.values()} == {True, False}
    for digest, place in stored.places.items():
        assert place.offset % (PAGE if sizes[digest] >= PAGE else 64) == 0
    spans = sorted((place.offset, place.offset + sizes[digest]) for digest, place in stored.places.items())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_a_pack_holds_only_what_is_new(store: TensorStore, tmp_path: Path) -> None:
    first = imported(store, write_checkpoint(tmp_path / "a", tensors=random_weights(1)))
    second = imported(store, write_checkpoint(tmp_path / "b", tensors=random_weights(2, embeddings_seed=1)))
    shared = set(first.places) & set(second.places)
    assert len(shared) == 5
    assert all(first.places[digest] == second.places[digest] for digest in shared)
    assert len(store.catalog.pack_sizes()) == 2


def test_the_same_model_again_writes_no_file(store: TensorStore, tmp_path: Path) -> None:
    import_folder(store, write_checkpoint(tmp_path / "a"))
    before = files_of(store)
    import_folder(store, write_checkpoint(tmp_path / "b"))
    assert files_of(store) == before


class TestAccidents:
    def test_an_import_killed_before_any_of_its_steps_is_repaired_and_done_again(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "a")
        done = subprocess.run(
            command("tests.store.crashing_import", folder, tmp_path / "stores"), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        crashes = [orjson.loads(line) for line in done.stdout.splitlines()]
        assert len(crashes) > 15
        assert any(crash["left"] for crash in crashes)
        for crash in crashes:
            assert crash["models"] == 0, "a part of an import was visible"
            assert sorted(crash["removed"]) == sorted(crash["left"])
            assert crash["again"] == []
            assert crash["sound"] == [True]

    @pytest.mark.parametrize("step", ["insert_model", "_make_durable", "insert_pack"])
    def test_an_import_that_fails_leaves_nothing(
        self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError(step)

        folder = write_checkpoint(tmp_path / "a")
        with monkeypatch.context() as patch:
            patch.setattr(module, step, broken)
            with pytest.raises(RuntimeError, match=step):
                import_folder(store, folder)
        assert files_of(store) == set()
        assert store.usage().models == 0
        import_folder(store, folder)
        assert store.repair().removed_files == ()

    def test_a_failed_import_leaves_the_files_of_others(self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import_folder(store, write_checkpoint(tmp_path / "a", seed=1))
        before = files_of(store)
        monkeypatch.setattr(module, "insert_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_folder(store, write_checkpoint(tmp_path / "b", seed=2))
        assert files_of(store) == before
        assert all(is_sound for _, is_sound in store.verify())

    def test_a_refused_checkpoint_stores_nothing(self, store: TensorStore, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "a")
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(BadPackage):
            import_folder(store, folder)
        assert files_of(store) == set()

    def test_models_whose_pack_is_lost_or_cut_are_dropped_and_imported_anew(self, store: TensorStore, tmp_path: Path) -> None:
        for seed in (1, 2, 3):
            import_folder(store, write_checkpoint(tmp_path / str(seed), seed=seed))
        first, second, third = (imported(store, tmp_path / str(seed)) for seed in (1, 2, 3))
        paths = [store.pack_path(next(iter(stored.places.values())).pack) for stored in (first, second)]
        paths[0].unlink()
        with paths[1].open("r+b") as file:
            file.truncate(100)
        report = store.repair()
        assert set(report.lost_packs) == {path.stem for path in paths}
        assert set(report.dropped_models) == {first.manifest.digest, second.manifest.digest}
        assert store.stored(first.manifest.digest) is None
        assert store.stored(third.manifest.digest) == third
        np.testing.assert_equal(tensors_of(imported(store, tmp_path / "1")), random_weights(1))

    def test_models_whose_tokenizer_is_lost_are_dropped(self, store: TensorStore, tmp_path: Path) -> None:
        stored = imported(store, write_checkpoint(tmp_path / "a"))
        Path(stored.tokenizer_path).unlink()
        assert store.repair().dropped_models == (stored.manifest.digest,)
        assert Path(imported(store, tmp_path / "a").tokenizer_path).exists()

    def test_repair_waits_for_the_import_that_writes(self, store: TensorStore, tmp_path: Path) -> None:
        code = """
import sys
from pathlib import Path
from flatshare.store.tensors import TensorStore
print(TensorStore(Path(sys.argv[1])).repair())
"""
        with store.writing() as writer:
            writer.add_tensor("a", np.ones(5_000, np.float32))
            writer.add_blob("graph", b"graph")
            writer.finish_pack()
            waiting = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], stdout=subprocess.PIPE)
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1.0)
            assert len(files_of(store)) == 2  # written, not yet committed, and not deleted
            writer.keep()
        out, _ = waiting.communicate(timeout=20)
        assert out.count(b".pack") == 1

    def test_a_full_disk_is_said_to_be_and_harms_nothing(self, store: TensorStore, tmp_path: Path) -> None:
        import_folder(store, write_checkpoint(tmp_path / "a", seed=1))
        before = files_of(store)
        large = write_checkpoint(tmp_path / "b", seed=2, config={**BIG, "intermediate_size": 8_192})
        with file_size_limit(2_000_000), pytest.raises(DiskFull, match="is full"):
            import_folder(store, large)
        assert files_of(store) == before
        assert store.usage().models == 1
        assert store.repair() == module.RepairReport((), (), ())
        import_folder(store, large)

    def test_a_full_disk_during_compaction_keeps_the_old_pack(
        self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        survivor = half_dead_pack(store, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DiskFull):
                store.collect()
        assert files_of(store) == {f"{p}.pack" for p in store.catalog.pack_sizes()} | store.catalog.blob_digests()
        np.testing.assert_equal(tensors_of(imported(store, survivor)), random_weights(2, embeddings_seed=1))

    def test_a_database_that_is_full_is_a_full_disk(self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        monkeypatch.setattr(module, "insert_model", full)
        with pytest.raises(DiskFull):
            import_folder(store, write_checkpoint(tmp_path / "a"))


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file can grow beyond it: EFBIG, since Python ignores SIGXFSZ."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestTogether:
    CODE = """
import sys
from pathlib import Path
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder
store = TensorStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for folder in sys.argv[2:]:
    import_folder(store, Path(folder))
"""

    def start(self, store: TensorStore, folders: list[Path]) -> "subprocess.Popen[bytes]":
        args = [sys.executable, "-c", self.CODE, str(store.folder), *map(str, folders)]
        return subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def release(self, *processes: "subprocess.Popen[bytes]") -> None:
        for process in processes:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()

    def test_two_processes_import_the_same_and_different_models_at_once(self, store: TensorStore, tmp_path: Path) -> None:
        folders = [write_checkpoint(tmp_path / str(seed), tensors=random_weights(seed, embeddings_seed=9)) for seed in range(12)]
        first, second = self.start(store, folders[:8]), self.start(store, folders[:3:-1])
        self.release(first, second)
        for process in (first, second):
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0, errors.decode()
        assert store.repair() == module.RepairReport((), (), ())
        assert len(store.catalog.pack_sizes()) == 12
        frozen = sum(tensor.nbytes for name, tensor in random_weights(0).items() if name.startswith("embeddings."))
        assert store.usage().saved_bytes == 11 * frozen
        for seed, folder in enumerate(folders):
            np.testing.assert_equal(tensors_of(imported(store, folder)), random_weights(seed, embeddings_seed=9))

    def test_a_process_that_is_killed_while_it_imports_hinders_nobody(self, store: TensorStore, tmp_path: Path) -> None:
        folders = [write_checkpoint(tmp_path / str(seed), seed=seed) for seed in range(40)]
        victim = self.start(store, folders)
        self.release(victim)
        while store.usage().models < 3:
            os.sched_yield()
        victim.kill()
        victim.communicate()
        store.repair()
        assert files_of(store) == {f"{p}.pack" for p in store.catalog.pack_sizes()} | store.catalog.blob_digests()
        for seed, folder in enumerate(folders[:8]):
            np.testing.assert_equal(tensors_of(imported(store, folder)), random_weights(seed))


def half_dead_pack(store: TensorStore, tmp_path: Path) -> Path:
    """Two models with common embeddings, which lie in the pack of the one that goes. Returns the folder of the other."""
    config = {**CONFIG, "num_hidden_layers": 3}
    import_folder(store, write_checkpoint(tmp_path / "goes", config=config, tensors=random_weights(1, config)))
    other = write_checkpoint(tmp_path / "stays", tensors=random_weights(2, embeddings_seed=1))
    import_folder(store, other)
    forget(store, tmp_path / "goes")
    return other


class TestCollection:
    def test_what_nobody_uses_is_freed(self, store: TensorStore, tmp_path: Path) -> None:
        import_folder(store, write_checkpoint(tmp_path / "a"))
        size = store.catalog.disk_bytes()
        forget(store, tmp_path / "a")
        report = store.collect()
        assert (report.models, report.freed_bytes) == (1, size)
        assert files_of(store) == set()
        assert store.catalog.disk_bytes() == 0

    def test_what_another_artifact_uses_stays(self, store: TensorStore, tmp_path: Path) -> None:
        import_folder(store, write_checkpoint(tmp_path / "a"))
        import_folder(store, write_checkpoint(tmp_path / "b"))
        before = files_of(store)
        forget(store, tmp_path / "a")
        assert store.collect().models == 0
        assert files_of(store) == before

    def test_a_pack_that_is_more_than_half_dead_is_written_anew(self, store: TensorStore, tmp_path: Path) -> None:
        survivor = half_dead_pack(store, tmp_path)
        before = store.catalog.disk_bytes()
        report = store.collect()
        assert report.freed_bytes == before - store.catalog.disk_bytes() > 0
        sizes = {path.stem: path.stat().st_size for path in store.packs_dir.iterdir()}
        assert sizes == store.catalog.pack_sizes()
        assert all(is_sound for _, is_sound in store.verify())
        np.testing.assert_equal(tensors_of(imported(store, survivor)), random_weights(2, embeddings_seed=1))
        assert store.collect().freed_bytes == 0

    def test_a_map_of_the_old_pack_still_reads_right(self, store: TensorStore, tmp_path: Path) -> None:
        survivor = half_dead_pack(store, tmp_path)
        held = tensors_of(imported(store, survivor))
        old = set(store.packs_dir.iterdir())
        store.collect()
        assert old - set(store.packs_dir.iterdir())
        np.testing.assert_equal(held, random_weights(2, embeddings_seed=1))
        np.testing.assert_equal(tensors_of(imported(store, survivor)), held)

    def test_the_model_that_went_can_come_back(self, store: TensorStore, tmp_path: Path) -> None:
        half_dead_pack(store, tmp_path)
        store.collect()
        config = {**CONFIG, "num_hidden_layers": 3}
        np.testing.assert_equal(tensors_of(imported(store, tmp_path / "goes")), random_weights(1, config))
        assert all(is_sound for _, is_sound in store.verify())

    def test_a_model_that_was_collected_between_two_reads_is_not_here(
        self, store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = import_folder(store, write_checkpoint(tmp_path / "a")).manifest
        forget(store, tmp_path / "a")

        def collected(_: object) -> object:
            store.collect()
            return manifest

        monkeypatch.setattr(store.catalog, "manifest", collected)
        assert store.stored(manifest.digest) is None


class TestRot:
    def test_a_flipped_bit_is_found_and_the_model_is_imported_anew(self, store: TensorStore, tmp_path: Path) -> None:
        for seed in (1, 2):
            import_folder(store, write_checkpoint(tmp_path / str(seed), seed=seed))
        assert all(is_sound for _, is_sound in store.verify())
        rotten = imported(store, tmp_path / "1")
        place = next(iter(rotten.places.values()))
        with store.pack_path(place.pack).open("r+b") as file:
            file.seek(place.offset)
            byte = file.read(1)[0]
            file.seek(place.offset)
            file.write(bytes([byte ^ 1]))
        assert {pack for pack, is_sound in store.verify() if not is_sound} == {place.pack}
        assert store.drop_pack(place.pack) == [rotten.manifest.digest]
        assert store.stored(rotten.manifest.digest) is None
        gc.collect()
        np.testing.assert_equal(tensors_of(imported(store, tmp_path / "1")), random_weights(1))
        assert all(is_sound for _, is_sound in store.verify())

    def test_a_pack_that_is_gone_is_not_sound(self, store: TensorStore, tmp_path: Path) -> None:
        import_folder(store, write_checkpoint(tmp_path / "a"))
        for path in store.packs_dir.iterdir():
            path.unlink()
        assert [is_sound for _, is_sound in store.verify()] == [False]
