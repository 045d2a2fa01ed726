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
from flatshare.core.ids import NOBODY, ArtifactUri, ModelDigest, Tenant
from flatshare.core.settings import DiskSettings
from flatshare.core.spec import StoredModel
from flatshare.instance.importers import Importers
from flatshare.instance.importing import ImportJob
from flatshare.policy.evict import Order
from flatshare.store.sources import probe
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger

log = get_logger("finding")
PLAIN_DISK = DiskSettings()
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


class Finder(Protocol):
    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest], urgency: Urgency = Urgency.DEMAND) -> Found:
        """The model that lies at `source` now. Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""

    def hasten(self, source: ModelSource) -> None:
        """Somebody waits now for what is looked for ahead. Returns at once."""

    async def known(self, source: ModelSource) -> StoredModel | None:
        """The same without an import: None if this version of the artifact was never imported."""

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
        tenant_of: Callable[[ModelSource], Tenant] = lambda _: NOBODY,
        disk: DiskSettings = PLAIN_DISK,
        order: Order = Order.VALUE,
        note: Callable[[str, str], None] = lambda _uri, _reason: None,
    ) -> None:
        """`order` says who leaves the disk first; `note` is told which artifact left it, and why."""
        self._store = store
        self._tenant_of = tenant_of
        self._threads = threads
        self._disk_bytes = disk_bytes
        self._disk = disk
        self._order = order
        self._note = note
        self.importers = Importers(disk.parallel_fetches)
        self._looks: list[_Look] = []
        self._out_of_reach: dict[str, float] = {}
        """Prefixes whose store did not answer, and until when models on the disk are taken without asking it."""

    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest], urgency: Urgency = Urgency.DEMAND) -> Found:
        """Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""
        began_s, look = time.monotonic(), _Look(source.uri, urgency)
        self._looks.append(look)
        try:
            stored = await self.known(source)
        finally:
            self._looks.remove(look)
            urgency = look.urgency
        look_s = time.monotonic() - began_s
        if stored is not None:
            return Found(stored, look_s)
        return await self._imported(source, in_use, urgency, look_s)

    async def _imported(self, source: ModelSource, in_use: frozenset[ModelDigest], urgency: Urgency, look_s: float) -> Found:
        """What an import brought. The store is not asked again: objects are read under the condition that they have not changed."""
        uri = ArtifactUri(source.uri)
        job = ImportJob(self._store.folder, uri, source.root, self._disk_bytes, in_use, urgency, self._disk, self._order)
        imported = await self.importers.run(job, self._tenant_of(source))
        for gone in imported.sent_away:
            self._note(gone, f"sent off the disk, where it {_LEAST[self._order]}, for {source.uri}")
        if uri.startswith("file://"):  # a folder is read in place, and may have been written to meanwhile
            stored = await self.known(source)
        else:
            stored = await asyncio.get_running_loop().run_in_executor(self._threads, self._taken, imported.digest)
        if stored is None:
            raise StoreUnavailable(f"{source.uri} changed while it was imported: call again")
        return Found(stored, look_s, imported.took_s)

    def is_here(self, source: ModelSource) -> bool:
        return self._store.catalog.last_model_of(ArtifactUri(source.uri)) is not None

    def hasten(self, source: ModelSource) -> None:
        for look in self._looks:
            if look.uri == source.uri:
                look.urgency = Urgency.DEMAND
        self.importers.hasten(ArtifactUri(source.uri))

    async def known(self, source: ModelSource) -> StoredModel | None:
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

    def _look(self, source: ModelSource) -> StoredModel | None:
        """The model if this version of the artifact was imported before; an earlier refusal is raised again."""
        uri = ArtifactUri(source.uri)
        last = self._store.catalog.last_model_of(uri)
        if last is not None and time.monotonic() < self._out_of_reach.get(source.root, 0.0):
            return self._taken(last)
        try:
            version = probe(uri, root=source.root).version
        except StoreUnavailable as error:
            if last is None:
                raise
            self._out_of_reach[source.root] = time.monotonic() + _TRUST_DISK_S
            log.warning("store_out_of_reach", uri=uri, goes_on_with=last, reason=str(error))
            return self._taken(last)
        if (digest := self._store.catalog.model_of(uri, version)) is not None:
            return self._taken(digest)
        refusal = self._store.catalog.refusal_of(uri, version)
        if refusal is not None:
            raise getattr(errors, refusal.error, BadPackage)(refusal.sentence)
        return None

    def _taken(self, digest: ModelDigest) -> StoredModel | None:
        self._store.catalog.touch(digest, time.time())
        return self._store.stored(digest)


@dataclass(slots=True, eq=False)
class _Look:
    """At an artifact, before it is fetched; somebody may come to wait for it meanwhile."""

    uri: str
    urgency: Urgency
