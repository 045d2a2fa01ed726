"""A loaded Triton repository: calls go to its entry, and from there to the models that it names."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput, ModelFailed
from flatshare.core.repository import Repository, Unit
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.backends.triton import ensemble, shapes
from flatshare.instance.workers.pool import WorkerPool
from flatshare.instance.workers.records import Answer, Ask, Model
from flatshare.pyworker.frames import NamedArray
from flatshare.wire import triton_config
from flatshare.wire.triton_config import ENSEMBLE, TritonConfig


class Step(Protocol):
    """A model that can be asked, whatever runs it."""

    @property
    def config(self) -> TritonConfig: ...

    async def infer(self, ask: Ask) -> list[Answer]: ...

    async def close(self) -> None: ...


class WorkerStep:
    """A model in a worker."""

    def __init__(self, pool: WorkerPool, model: Model, group: str) -> None:
        self._pool = pool
        self._model = model
        self._group = group

    @property
    def config(self) -> TritonConfig:
        return self._model.config

    async def infer(self, ask: Ask) -> list[Answer]:
        answers = await self._pool.infer(self._model, self._group, shapes.for_model(ask, self.config))
        return [shapes.from_model(answer, self.config) for answer in answers]

    async def close(self) -> None:
        await self._pool.remove(self._model, self._group)


class EnsembleStep:
    """Several models as one."""

    def __init__(self, config: TritonConfig, repository: "TritonModel") -> None:
        self.config = config
        self._repository = repository

    async def infer(self, ask: Ask) -> list[Answer]:
        return [await ensemble.run(self.config, ask, self._repository.resolve)]

    async def close(self) -> None:
        """Its steps are closed by whoever owns them."""


class TritonModel(RemoteModel):
    """Filled by `put`, ready after `complete`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._steps: dict[tuple[str, int], Step] = {}

    def put(self, unit: Unit, step: Step) -> None:
        self._steps[unit.model, unit.version] = step

    def complete(self) -> None:
        """All units are loaded: add the ensembles, and say what the entry takes and gives."""
        for unit in self._repository.units:
            config = triton_config.read(dict(unit.config), unit.model)
            if config.backend == ENSEMBLE:
                self._steps[unit.model, unit.version] = EnsembleStep(config, self)
        self.signature = shapes.signature(self._entry.config)

    @property
    def steps(self) -> Mapping[tuple[str, int], Step]:
        return self._steps

    def folder_of(self, name: str) -> str:
        """Relative to the package."""
        return next(unit.folder for unit in self._repository.units if unit.model == name)

    async def infer(self, call: InferCall) -> InferResult:
        """Raises BadInput, ModelFailed, WorkerDied, Quarantined, Overloaded."""
        config = self._entry.config
        shapes.check(call.inputs, config)
        inputs = tuple(NamedArray(tensor.name, tensor.datatype, tensor.data) for tensor in call.inputs.values())
        answers = await self._entry.infer(Ask(inputs, call.wanted, call.parameters, call.id or ""))
        if len(answers) != 1:
            raise ModelFailed(f"model '{config.name}' is decoupled and answered {len(answers)} times: this call takes exactly one answer")
        outputs = tuple(Tensor(tensor.name, tensor.datatype, tensor.data) for tensor in answers[0].outputs)
        return InferResult(outputs, dict(answers[0].parameters))

    async def resolve(self, name: str, version: int, ask: Ask) -> list[Answer]:
        """For ensembles, and for models that call others: the model of this repository with that name."""
        unit = self._repository.unit(name, version)
        step = self._steps.get((unit.model, unit.version)) if unit is not None else None
        if step is None:
            known = ", ".join(sorted({unit.model for unit in self._repository.units}))
            raise BadInput(
                f"there is no model '{name}'{'' if version == -1 else f' of version {version}'} in this package: it holds {known}"
            )
        return await step.infer(ask)

    async def close(self) -> None:
        await asyncio.gather(*(step.close() for step in self._steps.values()))

    @property
    def _entry(self) -> Step:
        unit = self._repository.unit(self._repository.entry)
        assert unit is not None, "a repository without its entry. This is a bug."
        return self._steps[unit.model, unit.version]
