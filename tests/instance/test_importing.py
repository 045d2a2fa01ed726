"""A model's way onto this machine: in a process that may die, remembered if refused, within the disk's budget."""

import asyncio
import fcntl
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from flatshare.bench.slow_store import slow_store
from flatshare.core.call import ModelSource, Urgency
from flatshare.core.errors import Abandoned, BadPackage, DiskFull, StoreUnavailable, UnknownTarget, UnsupportedModel
from flatshare.core.ids import ArtifactUri, ModelDigest, Tenant, model_key
from flatshare.core.settings import DiskSettings, SharingSettings, TenantSettings
from flatshare.instance import finding, importing, process
from flatshare.instance.finding import Found, ModelFinder
from flatshare.instance.importing import Imported, ImportJob, import_artifact
from flatshare.instance.turnstile import Claim
from flatshare.store.sources import Artifact, probe
from flatshare.store.tensors import TensorStore
from tests.checkpoints import random_weights, safetensors, write_checkpoint
from tests.contract.packages import write_model

NOBODY: frozenset[ModelDigest] = frozenset()
DISK = 10**9
PLAIN = SharingSettings()


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def uri_of(folder: Path) -> ArtifactUri:
    return ArtifactUri(f"file://{folder}")


def bring(store: TensorStore, folder: Path, *, disk_bytes: int = DISK, in_use: frozenset[ModelDigest] = NOBODY) -> ModelDigest:
    return import_artifact(ImportJob(store.folder, uri_of(folder), f"file://{folder.parent}", disk_bytes, in_use)).digest


def refuse_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports now has not remembered."""
    monkeypatch.setattr(importing, "import_checkpoint", lambda *_: pytest.fail("imported again"))


class TestWorker:
    def test_what_is_known_is_not_imported_again(self, store: TensorStore, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_checkpoint(models / "a")
        digest = bring(store, folder)
        refuse_imports(monkeypatch)
        assert bring(store, folder) == digest

    def test_what_has_changed_is_imported_again(self, store: TensorStore, models: Path) -> None:
        folder = write_checkpoint(models / "a", seed=1)
        first = bring(store, folder)
        (folder / "model.safetensors").write_bytes(safetensors(random_weights(2)))
        os.utime(folder / "model.safetensors", (1, 1))
        assert bring(store, folder) != first

    def test_nothing_of_an_import_stays_behind(self, store: TensorStore, models: Path) -> None:
        bring(store, write_checkpoint(models / "a"))
        assert list(store.incoming_dir.iterdir()) == []

    def test_an_artifact_outside_of_its_prefix_is_unknown(self, store: TensorStore, models: Path) -> None:
        folder = write_checkpoint(models / "a")
        with pytest.raises(UnknownTarget):
            import_artifact(ImportJob(store.folder, uri_of(folder), f"file://{models}/b/", DISK, NOBODY))


class TestDisk:
    def test_of_models_that_come_back_equally_fast_the_least_recently_used_leave_the_disk(self, store: TensorStore, models: Path) -> None:
        folders = [write_checkpoint(models / str(seed), seed=seed) for seed in range(4)]
        digests = [bring(store, folder) for folder in folders[:3]]
        for digest, used_s in zip(digests, (30.0, 10.0, 20.0), strict=True):
            store.catalog.touch(digest, used_s)
            store.catalog.remember_import(digest, 1.0)
        budget = store.catalog.disk_bytes() + 15_000
        newest = bring(store, folders[3], disk_bytes=budget)
        assert kept(store) == {digests[0], digests[2], newest}
        assert store.catalog.disk_bytes() <= budget

    def test_models_in_memory_stay_on_the_disk(self, store: TensorStore, models: Path) -> None:
        folders = [write_checkpoint(models / str(seed), seed=seed) for seed in range(3)]
        first, second = (bring(store, folder) for folder in folders[:2])
        store.catalog.touch(first, 1.0)
        store.catalog.touch(second, 2.0)
        budget = store.catalog.disk_bytes() + 15_000
        bring(store, folders[2], disk_bytes=budget, in_use=frozenset({first}))
        assert first in kept(store)
        assert second not in kept(store)
        assert len(kept(store)) == 2

    def test_a_model_beyond_the_whole_budget_is_refused_and_nothing_is_evicted(self, store: TensorStore, models: Path) -> None:
        first = bring(store, write_checkpoint(models / "a", seed=1))
        with pytest.raises(DiskFull, match="raise --disk"):
            bring(store, write_checkpoint(models / "b", seed=2), disk_bytes=store.catalog.disk_bytes() + 10, in_use=frozenset({first}))
        assert kept(store) == {first}

    async def test_what_leaves_the_disk_for_another_is_noted_with_the_reason(self, store: TensorStore, models: Path) -> None:
        old, new = (write_checkpoint(models / name, seed=seed) for seed, name in enumerate(("old", "new")))
        bring(store, old)
        noted: list[tuple[str, str]] = []
        with ThreadPoolExecutor(2) as threads:
            budget = store.catalog.disk_bytes() + 15_000
            finder = ModelFinder(store, threads, budget, note=lambda uri, reason: noted.append((uri, reason)))
            try:
                await finder.find(source(new), NOBODY)
            finally:
                finder.close()
        assert noted == [(uri_of(old), f"sent off the disk, where it was worth least per byte, for {uri_of(new)}")]

    async def test_a_remote_store_is_asked_for_the_version_once_by_who_looks_and_not_again_after_the_fetch(
        self, store: TensorStore, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_checkpoint(models / "a")
        looks = list[str]()

        def counted(uri: ArtifactUri, *, root: str) -> Artifact:
            looks.append(uri)
            return probe(uri, root=root)

        monkeypatch.setattr(finding, "probe", counted)
        with slow_store(models, 0.0) as remote:
            for name, value in remote.environment.items():
                monkeypatch.setenv(name, value)
            async with finder_of(store) as finder:
                far = ModelSource("s3://models/a", "s3://models/")
                assert not finder.is_here(far)
                found = await finder.find(far, NOBODY)
                assert finder.is_here(far)
                assert looks == [far.uri]
                assert found.fetch_s is not None
                assert found.fetch_s > 0
                assert (await finder.find(far, NOBODY)).fetch_s is None

    async def test_who_begins_to_wait_while_it_is_looked_at_waits_for_no_fetch_ahead(
        self, store: TensorStore, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_checkpoint(models / "a")
        urgencies, may_look = list[Urgency](), threading.Event()

        def held(uri: ArtifactUri, *, root: str) -> Artifact:
            assert may_look.wait(20)
            return probe(uri, root=root)

        async with finder_of(store) as finder:
            bring_in = finder.importers.run

            async def seen(job: ImportJob, claim: Claim) -> Imported:
                urgencies.append(job.urgency)
                return await bring_in(job, claim)

            monkeypatch.setattr(finding, "probe", held)
            monkeypatch.setattr(finder.importers, "run", seen)
            ahead = asyncio.create_task(finder.find(source(models / "a"), NOBODY, Urgency.AHEAD))
            await asyncio.sleep(0)
            finder.hasten(source(models / "a"))
            may_look.set()
            assert (await ahead).fetch_s
        assert urgencies == [Urgency.DEMAND]

    async def test_a_load_counts_as_use(self, store: TensorStore, models: Path) -> None:
        digest = bring(store, write_checkpoint(models / "a"))
        store.catalog.touch(digest, 1.0)
        async with finder_of(store) as finder:
            await finder.find(source(models / "a"), NOBODY)
        assert store.catalog.models()[0].used_s > 1.0


def kept(store: TensorStore) -> set[ModelDigest]:
    return {model.manifest.digest for model in store.catalog.models()}


def source(folder: Path) -> ModelSource:
    return ModelSource(uri_of(folder), f"file://{folder.parent}")


@asynccontextmanager
async def finder_of(store: TensorStore, sharing: SharingSettings = PLAIN) -> AsyncIterator[ModelFinder]:
    with ThreadPoolExecutor(2) as threads:
        finder = ModelFinder(store, threads, DISK, sharing)
        try:
            yield finder
        finally:
            finder.close()


class TestRefusals:
    def test_a_broken_artifact_is_remembered_until_it_changes(
        self, store: TensorStore, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_checkpoint(models / "a")
        whole = (folder / "config.json").read_bytes()
        (folder / "config.json").write_text("{}")
        with pytest.raises(UnsupportedModel):
            bring(store, folder)
        assert asyncio.run(find_again(store, folder, monkeypatch)) == "UnsupportedModel"
        monkeypatch.undo()
        (folder / "config.json").write_bytes(whole)
        assert bring(store, folder) in kept(store)

    def test_what_is_not_the_artifacts_fault_is_not_remembered(
        self, store: TensorStore, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_checkpoint(models / "a")
        with monkeypatch.context() as patch:
            patch.setattr(importing, "import_checkpoint", lambda *_: raise_(DiskFull("full")))
            with pytest.raises(DiskFull):
                bring(store, folder)
        assert bring(store, folder) in kept(store)


async def find_again(store: TensorStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the error, from memory: no process is started for it."""
    monkeypatch.setattr("flatshare.instance.importers.ProcessPoolExecutor", lambda *_, **__: pytest.fail("imported again"))
    async with finder_of(store) as finder:
        with pytest.raises(BadPackage) as caught:
            await finder.find(source(folder), NOBODY)
    return type(caught.value).__name__


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.slow
class TestProcess:
    async def test_a_worker_that_is_killed_fails_one_call_and_the_next_succeeds(self, store: TensorStore, models: Path) -> None:
        folder = write_checkpoint(models / "a")
        async with finder_of(store) as finder:
            with (store.folder / "import.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the import stops where it would write
                finding = asyncio.create_task(finder.find(source(folder), NOBODY))
                async with asyncio.timeout(20):
                    while not (store.incoming_dir / model_key(uri_of(folder))).exists():  # noqa: ASYNC110  (another process makes it)
                        await asyncio.sleep(0.01)
                [pid] = finder.importers.pids()
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(StoreUnavailable, match="died"):
                    await finding
            found = await finder.find(source(folder), NOBODY)
        assert found.stored.manifest.digest in kept(store)

    async def test_what_a_killed_import_had_taken_apart_goes_with_the_next_try(self, store: TensorStore, models: Path) -> None:
        folder = write_model(models / "a")
        async with finder_of(store) as finder:
            with held(store.folder / "import.lock"):
                finding = asyncio.create_task(finder.find(source(folder), NOBODY))
                await until(lambda: bool(list(store.incoming_dir.rglob("split-*"))))
                [pid] = finder.importers.pids()
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(StoreUnavailable, match="died"):
                    await finding
            await finder.find(source(folder), NOBODY)
        assert list(store.incoming_dir.iterdir()) == []

    async def test_simultaneous_imports_of_several_models_all_succeed(self, store: TensorStore, models: Path) -> None:
        folders = [write_checkpoint(models / str(seed), seed=seed) for seed in range(4)]
        async with finder_of(store) as finder:
            found = await asyncio.gather(*(finder.find(source(folder), NOBODY) for folder in [*folders, *folders]))
        assert len({one.stored.manifest.digest for one in found}) == 4

    @pytest.mark.parametrize(("urgency", "niceness"), [(Urgency.DEMAND, 10), (Urgency.AHEAD, 19)])
    async def test_all_threads_of_an_import_leave_the_cores_to_requests(
        self, store: TensorStore, models: Path, urgency: Urgency, niceness: int
    ) -> None:
        folder = write_checkpoint(models / "a")
        async with finder_of(store) as finder, asyncio.TaskGroup() as group:
            with held(store.folder / "import.lock"):
                group.create_task(finder.find(source(folder), NOBODY, urgency))
                await until((store.incoming_dir / model_key(uri_of(folder))).exists)
                [pid] = finder.importers.pids()
                expected = min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
                assert niceness_of_threads(pid) == {expected}

    async def test_a_fetch_that_nobody_waits_for_any_more_gives_its_turn_to_others(self, store: TensorStore, models: Path) -> None:
        first, forsaken, last = (write_checkpoint(models / str(seed), seed=seed) for seed in range(3))
        async with finder_of(store, SharingSettings(disk=ONE_FETCH)) as finder:
            turns = finder.importers._lanes[Urgency.DEMAND]._turns
            with held(store.folder / "import.lock"):
                fetches = [asyncio.create_task(finder.find(source(first), NOBODY))]
                await until(lambda: bool(finder.importers.pids()))
                fetches.append(asyncio.create_task(finder.find(source(forsaken), NOBODY, is_wanted=lambda: False)))
                await until(lambda: turns.waiting == 1)
                fetches.append(asyncio.create_task(finder.find(source(last), NOBODY)))
                await until(lambda: turns.waiting == 2)
            found, error, other = await asyncio.gather(*fetches, return_exceptions=True)
        assert isinstance(error, Abandoned)
        assert isinstance(found, Found)
        assert isinstance(other, Found)
        assert kept(store) == {found.stored.manifest.digest, other.stored.manifest.digest}

    async def test_fetches_go_by_the_weights_of_their_tenants(self, store: TensorStore, models: Path) -> None:
        folders = [write_checkpoint(models / f"{tenant}/{seed}", seed=seed) for tenant in "ba" for seed in range(4)]
        sharing = SharingSettings(disk=ONE_FETCH, tenants={Tenant("a"): TenantSettings(weight=3)})
        order = await fetched_at_once(store, sharing, models, folders)
        assert order[:4].count("a") == 3

    async def test_a_tenant_whose_artifacts_are_large_has_fewer_fetches(self, store: TensorStore, models: Path) -> None:
        large = [write_checkpoint(models / f"a/{seed}", seed=seed) for seed in range(2)]
        for folder in large:
            with (folder / "training_state.bin").open("wb") as file:
                file.truncate(40 << 20)  # no part of the model, but of the fetch
        small = [write_checkpoint(models / f"b/{seed}", seed=seed) for seed in range(5)]
        order = await fetched_at_once(store, SharingSettings(disk=ONE_FETCH), models, [*large, *small])
        assert order == ["a", *"bbbbb", "a"]


def niceness_of_threads(pid: int) -> set[int]:
    """As the kernel has it, proc(5)."""
    stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return {int(stat.rpartition(")")[2].split()[16]) for stat in stats}


ONE_FETCH = DiskSettings(parallel_fetches=1)


async def fetched_at_once(store: TensorStore, sharing: SharingSettings, models: Path, folders: list[Path]) -> list[str]:
    """All are asked for while another fetch is under way. Whose they are, in the order in which they are fetched."""
    first, order = write_checkpoint(models / "first/0", seed=99), list[str]()

    async def fetch(folder: Path) -> None:
        await finder.find(ModelSource(uri_of(folder), f"file://{models}"), NOBODY)
        order.append(folder.parent.name)

    async with finder_of(store, sharing) as finder, asyncio.TaskGroup() as group:
        turns = finder.importers._lanes[Urgency.DEMAND]._turns
        with held(store.folder / "import.lock"):
            group.create_task(fetch(first))
            await until(lambda: bool(finder.importers.pids()))
            for count, folder in enumerate(folders, start=1):
                group.create_task(fetch(folder))
                await until(lambda count=count: turns.waiting == count)  # type: ignore[misc]
    return order[1:]


@pytest.mark.slow
class TestAhead:
    async def test_what_is_waited_for_does_not_queue_behind_what_is_fetched_ahead(self, store: TensorStore, models: Path) -> None:
        ahead, wanted = (write_checkpoint(models / name, seed=seed) for seed, name in enumerate(("ahead", "wanted")))
        async with finder_of(store) as finder:
            with held(store.incoming_dir / f"{model_key(uri_of(ahead))}.lock"):  # the import ahead stops at its beginning
                slow = asyncio.create_task(finder.find(source(ahead), NOBODY, Urgency.AHEAD))
                await until(lambda: bool(finder.importers.pids()))
                await finder.find(source(wanted), NOBODY)
                assert not slow.done()
            await slow
        assert len(kept(store)) == 2

    async def test_what_somebody_waits_for_in_the_end_goes_on_among_the_others_that_are_waited_for(
        self, store: TensorStore, models: Path
    ) -> None:
        folder = write_checkpoint(models / "a")
        async with finder_of(store) as finder:
            with held(store.folder / "import.lock"):
                finding = asyncio.create_task(finder.find(source(folder), NOBODY, Urgency.AHEAD))
                await until(lambda: bool(finder.importers.pids()))
                [ahead] = finder.importers.pids()
                finder.hasten(source(folder))
                finder.hasten(source(folder))
                await until(lambda: bool(finder.importers.pids()) and ahead not in finder.importers.pids())
            found = await finding
        assert found.stored.manifest.digest in kept(store)

    async def test_only_a_fetch_that_somebody_waited_for_tells_how_long_one_takes(self, store: TensorStore, models: Path) -> None:
        folders = [write_checkpoint(models / name, seed=seed) for seed, name in enumerate("ab")]
        async with finder_of(store) as finder:
            assert (await finder.find(source(folders[0]), NOBODY, Urgency.AHEAD)).fetch_s is None
            assert (await finder.find(source(folders[1]), NOBODY)).fetch_s
            assert (await finder.find(source(folders[1]), NOBODY)).fetch_s is None

    async def test_two_may_fetch_one_artifact_ahead_and_both_are_hastened(self, store: TensorStore, models: Path) -> None:
        folder = write_checkpoint(models / "a")
        async with finder_of(store) as finder:
            with held(store.folder / "import.lock"):
                both = [asyncio.create_task(finder.find(source(folder), NOBODY, Urgency.AHEAD)) for _ in range(2)]
                await until(lambda: bool(finder.importers.pids()))
                [ahead] = finder.importers.pids()
                finder.hasten(source(folder))
                await until(lambda: len(finder.importers.pids()) == 2 and ahead not in finder.importers.pids())
            found = await asyncio.gather(*both)
        assert {one.stored.manifest.digest for one in found} == kept(store)

    async def test_to_hasten_what_nobody_fetches_changes_nothing(self, store: TensorStore, models: Path) -> None:
        async with finder_of(store) as finder:
            finder.hasten(source(models / "a"))

    async def test_a_find_ahead_that_is_called_off_ends_its_process(self, store: TensorStore, models: Path) -> None:
        folder = write_checkpoint(models / "a")
        async with finder_of(store) as finder:
            with held(store.folder / "import.lock"):
                finding = asyncio.create_task(finder.find(source(folder), NOBODY, Urgency.AHEAD))
                await until(lambda: bool(finder.importers.pids()))
                finding.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await finding
                await until(lambda: not finder.importers.pids())


@contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (other processes have no event here)
            await asyncio.sleep(0.01)


class TestRepair:
    def test_a_stale_folder_that_nobody_imports_into_goes(self, store: TensorStore) -> None:
        stale, fresh, held = (store.incoming_dir / name for name in ("stale", "fresh", "held"))
        for folder in (stale, fresh, held):
            (folder / "parts").mkdir(parents=True)
        for folder in (stale, held):
            os.utime(folder, (1, 1))
        with (store.incoming_dir / "held.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            importing.repair(store)
        assert {path.name for path in store.incoming_dir.iterdir() if path.is_dir()} == {"fresh", "held"}

    def test_an_instance_repairs_its_store_when_it_starts(
        self, store: TensorStore, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        digest = bring(store, write_checkpoint(models / "a"))
        (store.packs_dir / "0123.tmp").write_bytes(b"left by a killed import")
        (store.packs_dir / f"{'a' * 32}.pack").write_bytes(b"renamed, but not committed")
        process._repair(store)
        assert len(list(store.packs_dir.iterdir())) == 1
        assert kept(store) == {digest}
        assert "store_repaired" in capsys.readouterr().out + capsys.readouterr().err

    def test_a_store_in_order_is_not_worth_a_line(self, store: TensorStore, capsys: pytest.CaptureFixture[str]) -> None:
        process._repair(store)
        assert capsys.readouterr() == ("", "")
