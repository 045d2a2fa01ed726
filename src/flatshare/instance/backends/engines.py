"""Every engine of an instance behind one `Backend`: a model's manifest names the one that runs it."""

from collections.abc import Mapping

from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Backend, Footprint, LoadedModel, RemoteBackend, RemoteModel


class Engines:
    """Hands each model to its engine. The importer has refused manifests that name none of them."""

    def __init__(self, engines: Mapping[str, Backend]) -> None:
        self._engines = engines

    def footprint(self, stored: StoredModel) -> Footprint:
        return self._engines[stored.manifest.backend].footprint(stored)

    def load(self, stored: StoredModel) -> LoadedModel:
        return self._engines[stored.manifest.backend].load(stored)

    async def load_remote(self, stored: StoredModel) -> RemoteModel | None:
        engine = self._engines[stored.manifest.backend]
        return await engine.load_remote(stored) if isinstance(engine, RemoteBackend) else None

    def shrink(self) -> None:
        for engine in self._engines.values():
            engine.shrink()

    def statistics(self) -> dict[str, int]:
        return {name: value for engine in self._engines.values() for name, value in engine.statistics().items()}
