"""Step 5b: from an artifact's address to a model in this machine's store, importing it if it is new."""

import asyncio
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Protocol

from flatshare.core import errors
from flatshare.core.call import ModelSource
from flatshare.core.errors import BadPackage, StoreUnavailable
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.spec import StoredModel
from flatshare.instance.importing import die_with_parent, import_artifact
from flatshare.store.sources import probe
from flatshare.store.tensors import TensorStore

_RETIRE_AFTER_S = 20.0  # the import process holds 60 MB; it starts in half a second


class Finder(Protocol):
    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest]) -> StoredModel:
        """The model that lies at `source` now. Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""

    async def require(self, source: ModelSource) -> None:
        """Raises UnknownTarget if nothing lies at `source`; imports nothing."""


class ModelFinder:
    """Looks an artifact up, and has it imported by a process of its own, which retires when there is nothing to import."""

    def __init__(self, store: TensorStore, threads: Executor, disk_bytes: int) -> None:
        self._store = store
        self._threads = threads
        self._disk_bytes = disk_bytes
        self._pool: ProcessPoolExecutor | None = None
        self._imports = 0
        self._retirement: asyncio.TimerHandle | None = None

    async def find(self, source: ModelSource, in_use: frozenset[ModelDigest]) -> StoredModel:
        """Raises UnknownTarget, BadPackage, StoreUnavailable or DiskFull."""
        stored = await self._look_up(source)
        if stored is None:
            await self._import(source, in_use)
            stored = await self._look_up(source)
        if stored is None:
            raise StoreUnavailable(f"{source.uri} changed while it was imported: call again")
        return stored

    async def require(self, source: ModelSource) -> None:
        """Raises UnknownTarget if nothing lies at `source`, or StoreUnavailable; imports nothing."""
        await asyncio.get_running_loop().run_in_executor(self._threads, partial(probe, ArtifactUri(source.uri), root=source.root))

    def close(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
        if self._pool is not None:
            for process in self._pool._processes.values():  # an import under way must not delay the exit
                process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _known(self, source: ModelSource) -> StoredModel | None:
        """The model if this version of the artifact was imported before; an earlier refusal is raised again."""
        uri = ArtifactUri(source.uri)
        version = probe(uri, root=source.root).version
        digest = self._store.catalog.model_of(uri, version)
        if digest is not None:
            self._store.catalog.touch(digest, time.time())
            return self._store.stored(digest)
        refusal = self._store.catalog.refusal_of(uri, version)
        if refusal is not None:
            raise getattr(errors, refusal.error, BadPackage)(refusal.sentence)
        return None

    async def _import(self, source: ModelSource, in_use: frozenset[ModelDigest]) -> None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=die_with_parent)
        pool = self._pool
        self._imports += 1
        try:
            job = (self._store.folder, ArtifactUri(source.uri), source.root, self._disk_bytes, in_use)
            await asyncio.get_running_loop().run_in_executor(pool, import_artifact, *job)
        except BrokenProcessPool as error:
            if self._pool is pool:
                self._pool = None
            raise StoreUnavailable(
                f"the process that imported {source.uri} died (out of memory, or killed): call again to try once more"
            ) from error
        finally:
            self._imports -= 1
            self._retire_later()

    def _retire_later(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
        self._retirement = asyncio.get_running_loop().call_later(_RETIRE_AFTER_S, self._retire)

    def _retire(self) -> None:
        if self._imports == 0 and self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    async def _look_up(self, source: ModelSource) -> StoredModel | None:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._known, source)
