"""An instance around the fake backend: everything but the engine and the disk is real."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from flatshare.core.call import ModelSource, Urgency
from flatshare.core.clock import ManualClock
from flatshare.core.errors import UnknownTarget
from flatshare.core.ids import ArtifactUri, Digest, ModelDigest, ModelKey, TensorDigest, model_key
from flatshare.core.settings import CacheSettings, SharingSettings
from flatshare.core.spec import ModelManifest, StoredModel, TensorSpec
from flatshare.instance import books as books_module
from flatshare.instance import loading as loading_module
from flatshare.instance.backends.fake import FakeBackend
from flatshare.instance.books import Books
from flatshare.instance.cache import ModelCache
from flatshare.instance.finding import Found, Unseen
from flatshare.instance.turnstile import always
from flatshare.telemetry.journal import Entry, Journal

BASE = 5_000
LRU = SharingSettings(CacheSettings(order="lru"))
SESSION = 10_000  # FakeBackend's SHARED_BYTES
OWN = 1_000


AN_OLDER_FORM = (
    b'[{"key": "m", "source": {"uri": "file:///models/m", "root": "file:///models/"}, "reload_s": 0.03, "age_s": 1.0, '
    b'"visits": {"last_s": 1.0, "requests": 3, "starts": 2, "gap_s": 4.0, "by_hour": [1.0, 2.0]}}]'
)
"""What an instance remembered of its requests when sessions and hours were counted."""


def source(name: str) -> ModelSource:
    return ModelSource(f"file:///models/{name}", "file:///models/")


def key_of(name: str) -> ModelKey:
    return model_key(ArtifactUri(source(name).uri))


def stored_model(name: str, tensors: dict[str, int], *, graph: str = "g") -> StoredModel:
    digest = ModelDigest(name.encode().hex().ljust(64, "0"))
    specs = tuple(TensorSpec(t, TensorDigest(t), (size // 4,), size) for t, size in tensors.items())
    manifest = ModelManifest(digest, "bert", Digest(graph), Digest("t"), specs, 64, 8, False, 0)
    return StoredModel(manifest, {}, "", "", "")


@dataclass
class FakeFinder:
    """Knows the models that a test puts in. `gate` holds every search open; what `failures` names goes wrong."""

    models: dict[str, StoredModel] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    searches: int = 0
    in_use: frozenset[ModelDigest] = frozenset()
    footprints: dict[ModelDigest, int] = field(default_factory=dict)
    urgencies: list[Urgency] = field(default_factory=list)
    sources: list[ModelSource] = field(default_factory=list)
    hastened: list[ModelSource] = field(default_factory=list)
    look_s: float = 0.0
    is_wanted: Callable[[], bool] = always
    """What the last search was told."""
    unseen_bytes: int = 0
    not_here: set[str] = field(default_factory=set)
    """Names of models that have to be fetched."""

    def __post_init__(self) -> None:
        self.gate.set()

    def put(self, name: str, size: int = 1_000, *, graph: str = "g", shared: dict[str, int] | None = None) -> None:
        self.models[name] = stored_model(name, {f"weights of {name}": size, **(shared or {})}, graph=graph)

    async def find(
        self,
        source: ModelSource,
        in_use: frozenset[ModelDigest],
        urgency: Urgency = Urgency.DEMAND,
        is_wanted: Callable[[], bool] = always,
    ) -> Found:
        self.is_wanted = is_wanted
        self.searches += 1
        self.urgencies.append(urgency)
        self.sources.append(source)
        self.in_use = in_use
        await self.gate.wait()
        await self.require(source)
        stored = self.models[source.uri.rsplit("/", 1)[1]]
        return Found(replace(stored, measured_own_bytes=self.footprints.get(stored.manifest.digest)), self.look_s)

    async def require(self, source: ModelSource) -> None:
        name = source.uri.rsplit("/", 1)[1]
        if name in self.failures:
            raise self.failures[name]
        if name not in self.models:
            raise UnknownTarget(f"nothing lies at {source.uri}")

    def hasten(self, source: ModelSource) -> None:
        self.hastened.append(source)

    async def known(self, source: ModelSource) -> StoredModel | Unseen:
        return self.models.get(source.uri.rsplit("/", 1)[1], Unseen(self.unseen_bytes))

    def is_here(self, source: ModelSource) -> bool:
        return source.uri.rsplit("/", 1)[1] not in self.not_here

    def remember_footprint(self, digest: ModelDigest, own_bytes: int) -> None:
        self.footprints[digest] = own_bytes


@dataclass
class Flat:
    """One cache with all its neighbours."""

    cache: ModelCache
    finder: FakeFinder
    backend: FakeBackend
    books: Books
    clock: ManualClock
    journal: Journal

    async def use(self, *names: str) -> None:
        """One request for each, a second apart."""
        for name in names:
            self.clock.advance(1)
            async with self.cache.lease(key_of(name), source(name)):
                pass

    async def use_by(self, name: str, within_s: float) -> None:
        """One request with a deadline."""
        async with self.cache.lease(key_of(name), source(name), asyncio.get_running_loop().time() + within_s):
            pass

    async def slow_load(self, name: str, took_s: float) -> None:
        """Unload it, and let its loads be known to take so long."""
        await self.cache.unload(key_of(name))
        for _ in range(40):
            self.cache.demand.loaded(key_of(name), took_s)

    async def loaded_at_once(self, names: Sequence[str]) -> list[str]:
        """One request for each while the first one's load is under way; in which order they are loaded."""
        self.backend.gate.clear()
        before = self.finder.searches
        requests = []
        for count, name in enumerate(names, start=before + 1):
            requests.append(asyncio.create_task(self.use(name)))
            await self.until(lambda count=count: self.finder.searches == count)  # type: ignore[misc]
        await self.until(lambda: self.cache._loads.turns.waiting == len(names) - 1)
        self.backend.gate.set()
        await asyncio.gather(*requests)
        return [entry.model.rsplit("/", 1)[1] for entry in reversed(self.entries("load")[: len(names)])]

    @property
    def resident(self) -> set[str]:
        return {info.uri.rsplit("/", 1)[1] for info in self.cache.snapshot()}

    def entries(self, kind: str) -> list[Entry]:
        return [entry for entry in self.journal.latest(500) if entry.kind == kind]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  (a condition over many objects has no event)
                await asyncio.sleep(0)


@asynccontextmanager
async def running_flat(
    memory_bytes: int,
    *,
    anonymous_share: float = 0.5,
    patience_s: float = 5.0,
    recheck_s: float = 10.0,
    threads: Executor | None = None,
    sharing: SharingSettings = LRU,
) -> AsyncIterator[Flat]:
    backend, finder, clock, journal = FakeBackend(), FakeFinder(), ManualClock(), Journal()
    books = Books(memory_bytes, anonymous_share, BASE)
    with threads or ThreadPoolExecutor(2) as loaders:
        cache = ModelCache(backend, finder, books, loaders, clock, journal, patience_s=patience_s, recheck_s=recheck_s, sharing=sharing)
        try:
            yield Flat(cache, finder, backend, books, clock, journal)
            cache.check()
        finally:
            backend.gate.set()


@pytest.fixture(autouse=True)
def _nothing_measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is booked counts: these tests run in a process that holds torch."""
    if request.module.__name__.rpartition(".")[2] in {
        "test_app",
        "test_books",
        "test_cache",
        "test_cache_sharing",
        "test_hot",
        "test_promote",
        "test_prefetch",
        "test_scrub",
        "test_sharing",
        "test_watch",
    }:
        monkeypatch.setattr(books_module, "anonymous_bytes", lambda: 0)
        monkeypatch.setattr(loading_module, "anonymous_bytes", lambda: 0)  # or this process's own growth would become footprints


@pytest.fixture
async def flat() -> AsyncIterator[Flat]:
    """Room for one session and four models of 1,000 bytes of weights: 5,000 + 10,000 + 4 * (1,000 + 1,000)."""
    async with running_flat(BASE + SESSION + 4 * (OWN + 1_000), anonymous_share=0.9) as running:
        for index in range(10):
            running.finder.put(f"m{index}")
        yield running
