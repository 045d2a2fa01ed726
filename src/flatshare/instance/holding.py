"""Step 5: what the cache keeps of a model that it holds, and what it lends out of it."""

import asyncio
from dataclasses import dataclass, field

from flatshare.core.call import ModelSource
from flatshare.core.ids import ModelDigest, ModelKey, Tenant
from flatshare.instance.backends.base import LoadedModel, Packable, RemoteModel


@dataclass(slots=True)
class Loaded:
    """What a load brought."""

    digest: ModelDigest
    mapped_bytes: int
    model: list[LoadedModel | RemoteModel] = field(repr=False)
    """The only lasting reference; emptied on a loader thread, since unmapping takes a millisecond."""
    took_s: float


@dataclass(slots=True)
class Holding:
    """A model that is loading or resident."""

    source: ModelSource
    tenant: Tenant
    ready: "asyncio.Task[Loaded]"
    began_s: float
    used_s: float
    checked_s: float
    """When the artifact was last looked at."""
    is_fetch: bool
    """It was not on this disk when its load began."""
    leases: int = 0
    is_scratch: bool = False
    is_ahead: bool = False
    """Loaded for whoever comes next, so it is wanted although nobody waits."""

    @property
    def gives_way(self) -> bool:
        """It is fetched ahead of whoever comes next, beside those that somebody waits for."""
        return self.is_fetch and self.is_ahead

    def is_wanted(self) -> bool:
        """Somebody waits for it, or it is loaded ahead."""
        return self.leases > 0 or self.is_ahead

    @property
    def is_loaded(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None


@dataclass(frozen=True, slots=True)
class Resting:
    """A model in memory that may have a prepacked copy."""

    key: ModelKey
    source: ModelSource
    model: Packable
    held: Holding = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """A model lent out: it stays in memory until the lease ends."""

    model: LoadedModel | RemoteModel
    digest: ModelDigest
    cold_start_s: float | None
    """How long this request waited for the load; None if the model was there."""
    tenant: Tenant
    key: ModelKey
    held: Holding = field(repr=False)
    cause: str = ""
    """Why the model had to be loaded when it was loaded last."""
