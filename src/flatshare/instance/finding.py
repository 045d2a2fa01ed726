"""Step 5b: from an artifact's address to a model in this machine's store, importing it if it is new."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from flatshare.core import errors
from flatshare.core.call import ModelSource, Urgency
from flatshare.core.errors import BadPackage, StoreUnavailable
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.settings import SharingSettings
from flatshare.core.spec import StoredModel
from flatshare.instance.importers import Importers
from flatshare.instance.importing import ImportJob
from flatshare.instance.turnstile import Claim, always
from flatshare.policy import loads
from flatshare.policy.evict import Order
from flatshare.policy.tenants import TenantOf
from flatshare.store.sources import probe
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger

log = get_logger("finding")
_PLAIN = SharingSettings()
_LEAST = {Order.VALUE: "was worth least per byte", Order.LRU: "was used least recently"}
_TRUST_DISK_S = 10.0  # to find out that a store is dead takes as long


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine's disk."""

    stored: StoredModel
    look_s: float
    """What the look took, without an import: a model that only left memory is not imported again."""
    fetch_s: float | None = None
    """What the import took, without its wait for a turn; None if there was none."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """An artifact that was never imported here in its present version."""

    size_bytes: int
    """Zero if the store that would tell it does not answer."""


class Finder(Protocol):
    async def find(
        self,
        source: ModelSource,
        in_use: frozenset[ModelDigest],
        urgency: Urgency = Urgency.DEMAND,
        is_wanted: Callable[[], bool] = always,
    ) -> Found:
        """The model that lies at `source` now. Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull.

        Raises Abandoned if it has to be fetched, is not wanted any more when its turn comes, and others wait for theirs.
        """

    def hasten(self, source: ModelSource) -> None:
        """Somebody waits now for what is looked for ahead. Returns at once."""

    async def known(self, source: ModelSource) -> StoredModel | Unseen:
        """The same without an import."""

    def is_here(self, source: ModelSource) -> bool:
        """Is a version of it on this disk? Asks no store, returns at once."""

    def remember_footprint(self, digest: ModelDigest, own_bytes: int) -> None:
        """Private memory that a load of the model was seen to take: `find` tells it from now on. Returns at once."""

    async def require(self, source: ModelSource) -> None:
        """Raises UnknownTarget if nothing lies at `source`; imports nothing."""


class ModelFinder:
    """Looks an artifact up, and has it imported by a process of its own, which retires when there is nothing to import."""

    def __init__(
        self,
        store: TensorStore,
        threads: Executor,
        disk_bytes: int,
        sharing: SharingSettings = _PLAIN,
        note: Callable[[str, str], None] = lambda _uri, _reason: None,
    ) -> None:
        """`note` is told which artifact left the disk, and why."""
        self._store = store
        self._tenant_of = TenantOf(sharing.memory.tenant_pattern)
        self._threads = threads
        self._disk_bytes = disk_bytes
        self._sharing = sharing
        self._order = Order(sharing.memory.order)
        self._note = note
        self.importers = Importers(sharing.disk.parallel_fetches)
        self._looks: list[_Look] = []
        self._out_of_reach: dict[str, float] = {}
        """Prefixes whose store did not answer, and until when models on the disk are taken without asking it."""

    async def find(
        self,
        source: ModelSource,
        in_use: frozenset[ModelDigest],
        urgency: Urgency = Urgency.DEMAND,
        is_wanted: Callable[[], bool] = always,
    ) -> Found:
        """Raises UnknownTarget, BadPackage, StoreUnavailable, DiskFull or Abandoned."""
        began_s, look = time.monotonic(), _Look(source.uri, urgency)
        self._looks.append(look)
        try:
            stored = await self.known(source)
        finally:
            self._looks.remove(look)
            urgency = look.urgency
        look_s = time.monotonic() - began_s
        if not isinstance(stored, Unseen):
            return Found(stored, look_s)
        uri = ArtifactUri(source.uri)
        job = ImportJob(self._store.folder, uri, source.root, self._disk_bytes, in_use, urgency, self._sharing.disk, self._order)
        tenant = self._tenant_of(source)
        claim = Claim(tenant, self._sharing.tenant(tenant).weight, loads.fetch_cost_bytes(stored.size_bytes), is_wanted)
        return await self._imported(source, job, claim, look_s)

    async def _imported(self, source: ModelSource, job: ImportJob, claim: Claim, look_s: float) -> Found:
        """What an import brought. The store is not asked again: objects are read under the condition that they have not changed."""
        imported = await self.importers.run(job, claim)
        for gone in imported.sent_away:
            self._note(gone, f"sent off the disk, where it {_LEAST[self._order]}, for {source.uri}")
        if job.uri.startswith("file://"):  # a folder is read in place, and may have been written to meanwhile
            stored = await self.known(source)
        else:
            stored = await asyncio.get_running_loop().run_in_executor(self._threads, self._taken, imported.digest)
        if isinstance(stored, Unseen):
            raise StoreUnavailable(f"{source.uri} changed while it was imported: call again")
        return Found(stored, look_s, imported.took_s)

    def is_here(self, source: ModelSource) -> bool:
        return self._store.catalog.last_model_of(ArtifactUri(source.uri)) is not None

    def hasten(self, source: ModelSource) -> None:
        for look in self._looks:
            if look.uri == source.uri:
                look.urgency = Urgency.DEMAND
        self.importers.hasten(ArtifactUri(source.uri))

    async def known(self, source: ModelSource) -> StoredModel | Unseen:
        """Raises UnknownTarget, or why an earlier import was refused; StoreUnavailable only if no version of it is on this disk."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._look, source)

    def remember_footprint(self, digest: ModelDigest, own_bytes: int) -> None:
        """Returns at once; written by one of the threads."""
        self._threads.submit(self._store.catalog.remember_footprint, digest, own_bytes)

    async def require(self, source: ModelSource) -> None:
        """Raises UnknownTarget if nothing lies at `source`, or StoreUnavailable; imports nothing."""
        await asyncio.get_running_loop().run_in_executor(self._threads, partial(probe, ArtifactUri(source.uri), root=source.root))

    def close(self) -> None:
        self.importers.close()

    def _look(self, source: ModelSource) -> StoredModel | Unseen:
        """The model if this version of the artifact was imported before; an earlier refusal is raised again."""
        uri = ArtifactUri(source.uri)
        last = self._store.catalog.last_model_of(uri)
        if last is not None and time.monotonic() < self._out_of_reach.get(source.root, 0.0):
            return self._taken(last)
        try:
            artifact = probe(uri, root=source.root)
        except StoreUnavailable as error:
            if last is None:
                raise
            self._out_of_reach[source.root] = time.monotonic() + _TRUST_DISK_S
            log.warning("store_out_of_reach", uri=uri, goes_on_with=last, reason=str(error))
            return self._taken(last)
        if (digest := self._store.catalog.model_of(uri, artifact.version)) is not None:
            return self._taken(digest, artifact.size_bytes)
        refusal = self._store.catalog.refusal_of(uri, artifact.version)
        if refusal is not None:
            raise getattr(errors, refusal.error, BadPackage)(refusal.sentence)
        return Unseen(artifact.size_bytes)

    def _taken(self, digest: ModelDigest, size_bytes: int = 0) -> StoredModel | Unseen:
        self._store.catalog.touch(digest, time.time())
        return self._store.stored(digest) or Unseen(size_bytes)


@dataclass(slots=True, eq=False)
class _Look:
    """At an artifact, before it is fetched; somebody may come to wait for it meanwhile."""

    uri: str
    urgency: Urgency
