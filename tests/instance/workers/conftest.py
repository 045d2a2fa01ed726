"""A backend with real worker processes, and packages written as text; deadlines are short, so that a hang is over soon."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatshare.core.call import InferCall, InferResult
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import SharingSettings, StoreLimits, WorkerSettings
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.instance.backends.triton.backend import TritonBackend
from flatshare.instance.inside import InnerModels
from flatshare.instance.workbench import Workbench
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore
from tests.contract.packages import write_model

_numbers = itertools.count()


@dataclass
class Hotel:
    """Imports packages and loads them."""

    backend: TritonBackend
    store: TensorStore
    folder: Path
    mapped: MappedBackend
    models: list[RemoteModel] = field(default_factory=list)

    async def load_code(self, code: str, settings: str | None = None, files: dict[str, str] | None = None) -> RemoteModel:
        """A Python model with files beside it; each call is a package of its own."""
        folder = write_model(self.folder / f"p{next(_numbers)}", code, settings)
        for name, content in {"number.txt": str(next(_numbers)), **(files or {})}.items():
            path = folder / folder.name / "1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return await self.load(folder)

    async def load(self, folder: Path) -> RemoteModel:
        report = import_checkpoint(self.store, folder, ArtifactUri(f"file://{folder}"), "1", StoreLimits())
        stored = self.store.stored(report.manifest.digest)
        assert stored is not None
        model = await self.backend.load_remote(stored)
        self.models.append(model)
        return model

    @property
    def workers(self) -> int:
        return self.backend.pool.statistics()["workers"]


MakeHotel = Callable[..., Awaitable[Hotel]]


@pytest.fixture
async def make_hotel(tmp_path: Path) -> AsyncIterator[MakeHotel]:
    hotels: list[Hotel] = []
    mapped, workbench, loaders = MappedBackend(concurrent_runs=1), Workbench(1, SharingSettings()), ThreadPoolExecutor(1)

    async def make(sharing: SharingSettings | None = None, **settings: Any) -> Hotel:
        chosen = {"most": 1, "load_s": 30.0, "run_s": 30.0, "has_spare": False} | settings
        backend = TritonBackend(WorkerSettings(**chosen), InnerModels(mapped, workbench, loaders), sharing or SharingSettings())
        hotel = Hotel(backend, TensorStore(tmp_path / f"store{len(hotels)}"), tmp_path / "packages", mapped)
        hotels.append(hotel)
        return hotel

    yield make
    for hotel in hotels:
        await hotel.backend.pool.close()
    workbench.close()
    loaders.shutdown()


@pytest.fixture
async def hotel(make_hotel: MakeHotel) -> Hotel:
    return await make_hotel()


def call(*values: float, name: str = "A", **parameters: Any) -> InferCall:
    return InferCall({name: Tensor.of(name, np.array([values], np.float32))}, parameters)


def numbers(result: InferResult, name: str = "B") -> list[float]:
    return [float(value) for value in result.output(name).data.reshape(-1)]
