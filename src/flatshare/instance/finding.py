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
from flatshare.store.sources import probe
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.log import get_logger

log = get_logger("finding")
PLAIN_DISK = DiskSettings()
_TRUST_DISK_S = 10.0  # to find out that a store is dead takes as long


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine's disk."""

    stored: StoredModel
    look_s: float
    """What the look took, without an import: a model that only left memory is not imported again."""


class Finder(Protocol):
    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest], urgency: Urgency = Urgency.DEMAND) -> Found:
        """The model that lies at `source` now. Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""

    def hasten(self, source: ModelSource) -> None:
        """Somebody waits now for what is looked for ahead. Returns at once."""

    async def known(self, source: ModelSource) -> StoredModel | None:
        """The same without an import: None if this version of the artifact was never imported."""

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
        note: Callable[[str, str], None] = lambda _uri, _reason: None,
    ) -> None:
        """`note` is told which artifact left the disk, and why."""
        self._store = store
        self._tenant_of = tenant_of
        self._threads = threads
        self._disk_bytes = disk_bytes
        self._disk = disk
        self._note = note
        self.importers = Importers(disk.parallel_fetches)
        self._out_of_reach: dict[str, float] = {}
        """Prefixes whose store did not answer, and until when models on the disk are taken without asking it."""

    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest], urgency: Urgency = Urgency.DEMAND) -> Found:
        """Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""
        began_s = time.monotonic()
        stored = await self.known(source)
        if stored is None:
            job = ImportJob(self._store.folder, ArtifactUri(source.uri), source.root, self._disk_bytes, in_use, urgency, self._disk)
            imported = await self.importers.run(job, self._tenant_of(source))
            for uri in imported.sent_away:
                self._note(uri, f"sent off the disk, where it was worth least per byte, for {source.uri}")
            began_s = time.monotonic()
            stored = await self.known(source)
        if stored is None:
            raise StoreUnavailable(f"{source.uri} changed while it was imported: call again")
        return Found(stored, time.monotonic() - began_s)

    def hasten(self, source: ModelSource) -> None:
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
