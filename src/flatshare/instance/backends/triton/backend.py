"""Loads a Triton repository: every model that is served of it, into workers, or into the mapped engine."""

import asyncio
import hashlib
import itertools
from contextlib import suppress
from pathlib import Path

from flatshare.core.errors import FlatshareError, ModelFailed
from flatshare.core.ids import Digest, ModelKey
from flatshare.core.repository import Repository, Unit, from_json
from flatshare.core.settings import SharingSettings, WorkerSettings
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Footprint, LoadedModel, RemoteModel
from flatshare.instance.backends.triton.mapped import MappedStep, stored_inside
from flatshare.instance.backends.triton.model import TritonModel, WorkerStep
from flatshare.instance.backends.triton.warmup import warm_up
from flatshare.instance.inside import InnerModels
from flatshare.instance.workers.pool import WorkerPool
from flatshare.instance.workers.records import Place
from flatshare.wire import triton_config
from flatshare.wire.triton_config import ENSEMBLE, TritonConfig

_MODEL_BYTES = 2_000_000  # of a model that maps its weights: its Python objects and buffers
_WORKER_BYTES = 30_000_000
_LIBRARY_BYTES = {"torch": 110_000_000, "onnxruntime": 25_000_000, "transformers": 60_000_000}
"""Private memory of a process that has imported them: measured, see docs/benchmarks.md."""
_OWN_WORKER = "FLATSHARE_OWN_WORKER"


class TritonBackend:
    """Owns the workers. `load_remote` on the event loop; only mapped models are loaded on a thread."""

    def __init__(self, settings: WorkerSettings, inner: InnerModels, sharing: SharingSettings) -> None:
        self.pool = WorkerPool(settings, sharing)
        self._inner = inner
        self._environments: dict[str, Path] = {}
        self._loads = itertools.count(1)

    def footprint(self, stored: StoredModel) -> Footprint:
        """Predicted by the size of the files; the books count what the kernel measures if that is more."""
        repository = _repository(stored)
        own, shared = 0, dict[str, int]()
        for unit in repository.units:
            if (inside := stored_inside(stored, unit)) is not None:
                mapped = self._inner.footprint(inside)
                own, shared = own + mapped.own_bytes, shared | mapped.shared
            elif triton_config.read(dict(unit.config), unit.model).backend != ENSEMBLE:
                own += _private_bytes(unit)
                libraries = sum(_LIBRARY_BYTES.get(name, 0) for name in unit.imports)
                shared[f"worker {unit.code}"] = _WORKER_BYTES + libraries
        return Footprint(own, shared)

    def load(self, stored: StoredModel) -> LoadedModel:
        raise AssertionError(f"{stored.manifest.digest} is loaded by load_remote. This is a bug.")

    async def load_remote(self, stored: StoredModel) -> RemoteModel:
        """Every unit in its worker, warmed up. Raises ModelFailed, Quarantined, WorkerDied, OutOfMemory; nothing stays loaded then."""
        repository, number = _repository(stored), next(self._loads)
        model = TritonModel(repository)
        try:
            async with asyncio.TaskGroup() as loads:
                for unit in repository.units:
                    loads.create_task(self._load_unit(stored, unit, number, model))
            model.complete()
            await warm_up(model, Path(stored.package_dir))
        except* FlatshareError as errors:
            await self._abandon(model)
            raise _first(errors) from None
        except* BaseException:
            await self._abandon(model)
            raise
        return model

    def shrink(self) -> None:
        """Workers tidy up by themselves, in their pauses."""

    def statistics(self) -> dict[str, int]:
        return self.pool.statistics()

    async def _load_unit(self, stored: StoredModel, unit: Unit, number: int, model: TritonModel) -> None:
        config = triton_config.read(dict(unit.config), unit.model)
        if config.backend == ENSEMBLE:
            return
        if (inside := stored_inside(stored, unit)) is not None:
            loaded = await self._inner.load(inside)
            model.put(unit, MappedStep(config, ModelKey(inside.manifest.digest), loaded, self._inner))
            return
        python = None
        if unit.environment is not None:
            python = Path(stored.package_dir).parent.parent / "environments" / unit.environment / "bin" / "python"
        place = Place(
            key=f"{number}/{unit.model}/{unit.version}",
            identity=f"{stored.manifest.digest}/{unit.model}/{unit.version}",
            unit=unit,
            config=config,
            folder=Path(stored.package_dir, unit.folder),
            python=python,
            private_bytes=_private_bytes(unit),
        )
        group = _group(stored, unit, config)
        worker_model = await self.pool.add(place, group, model.resolve)
        model.put(unit, WorkerStep(self.pool, worker_model, group))

    async def _abandon(self, model: TritonModel) -> None:
        with suppress(FlatshareError):
            await model.close()


def _repository(stored: StoredModel) -> Repository:
    return from_json(Path(stored.graph_path).read_bytes())


def _group(stored: StoredModel, unit: Unit, config: TritonConfig) -> str:
    """Whose workers: those of the code version, or of this package alone if it says so."""
    alone = config.parameters.get(_OWN_WORKER, "").lower() in {"1", "true", "yes", "on"}
    return Digest(hashlib.sha256(f"{unit.code} {stored.manifest.digest}".encode()).hexdigest()) if alone else unit.code


def _private_bytes(unit: Unit) -> int:
    """A model that maps keeps nothing but objects; any other reads its files into memory of its own."""
    return _MODEL_BYTES + (0 if unit.is_mapping else unit.weight_bytes)


def _first(errors: BaseExceptionGroup[FlatshareError]) -> FlatshareError:
    """What a caller hears: one sentence."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, FlatshareError) else ModelFailed(str(error))
