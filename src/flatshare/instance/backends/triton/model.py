"""A loaded Triton repository: calls go to its entry, and from there to the models that it names."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadInput, ModelFailed
from flatshare.core.ids import NOBODY, Tenant
from flatshare.core.repository import Repository, Unit
from flatshare.core.signature import Signature
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import LoadedModel, RemoteModel
from flatshare.instance.backends.triton import ensemble, shapes
from flatshare.instance.backends.triton.ensemble import Ensemble
from flatshare.instance.backends.triton.mapped import MappedStep
from flatshare.instance.workers.pool import WorkerPool
from flatshare.instance.workers.records import Answer, Ask, Model
from flatshare.package.triton.flow import flow_of
from flatshare.pyworker.frames import NamedArray
from flatshare.wire import triton_config
from flatshare.wire.triton_config import ENSEMBLE, TritonConfig


class Step(Protocol):
    """A model that can be asked, whatever runs it."""

    @property
    def config(self) -> TritonConfig: ...

    async def infer(self, ask: Ask) -> list[Answer]: ...

    async def stream(self, ask: Ask, on_part: Callable[[Answer], None]) -> None: ...

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

    async def stream(self, ask: Ask, on_part: Callable[[Answer], None]) -> None:
        config = self.config
        asked = shapes.for_model(ask, config)
        for answer in await self._pool.infer(self._model, self._group, asked, lambda answer: on_part(shapes.from_model(answer, config))):
            on_part(shapes.from_model(answer, config))  # of a model that is not decoupled

    async def close(self) -> None:
        await self._pool.remove(self._model, self._group)


class EnsembleStep:
    """Several models as one; decoupled if one of them is."""

    def __init__(self, made_of: Ensemble) -> None:
        self.config = replace(made_of.config, is_decoupled=bool(made_of.flow.decoupled))
        self._made_of = made_of

    async def infer(self, ask: Ask) -> list[Answer]:
        answers: list[Answer] = []
        await ensemble.run(self._made_of, ask, answers.append)
        return answers

    async def stream(self, ask: Ask, on_part: Callable[[Answer], None]) -> None:
        await ensemble.run(self._made_of, ask, on_part)

    async def close(self) -> None:
        """Its steps are closed by whoever owns them."""


class TritonModel(RemoteModel):
    """Filled by `put`, ready after `complete`."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._steps: dict[tuple[str, int], Step] = {}
        self._signatures: dict[str, Signature] = {}

    def put(self, unit: Unit, step: Step) -> None:
        self._steps[unit.model, unit.version] = step

    def complete(self) -> None:
        """All units are loaded: add the ensembles, and say what the entry takes and gives."""
        for unit in self._repository.units:
            self._add_ensemble(unit)
        units = {unit.version: unit for unit in self._repository.units if unit.model == self._repository.entry}
        versions = tuple(map(str, sorted(units)))
        for version in ("", *versions):
            unit = self._unit(version)
            config = self._steps[unit.model, unit.version].config
            self._signatures[version] = replace(shapes.signature(config), versions=versions)
        self.signature = self._signatures[""]

    def _add_ensemble(self, unit: Unit) -> None:
        """After those that are steps of it. Raises BadPackage if a step's own code says that it is decoupled, and others cannot follow."""
        config = triton_config.read(dict(unit.config), unit.model)
        if config.backend == ENSEMBLE and (unit.model, unit.version) not in self._steps:
            made_of = Ensemble(config, flow_of(config, self._is_decoupled), self)
            self._steps[unit.model, unit.version] = EnsembleStep(made_of)

    def _is_decoupled(self, step: triton_config.Step) -> bool:
        unit = self._repository.unit(step.model, step.version)
        if unit is None:
            return False  # it fails when it is asked, with a sentence
        self._add_ensemble(unit)
        return self._steps[unit.model, unit.version].config.is_decoupled

    @property
    def steps(self) -> Mapping[tuple[str, int], Step]:
        return self._steps

    def folder_of(self, name: str) -> str:
        """Relative to the package."""
        return next(unit.folder for unit in self._repository.units if unit.model == name)

    def signature_of(self, version: str) -> Signature:
        self.signature.require_version(version)
        return self._signatures[version]

    async def infer(self, call: InferCall, tenant: Tenant = NOBODY, deadline_s: float | None = None) -> InferResult:
        """Raises BadInput, ModelFailed, WorkerDied, Quarantined, Overloaded, OverQuota, TooLate."""
        unit = self._unit(call.version)
        entry = self._steps[unit.model, unit.version]
        answers = await entry.infer(_ask(call, entry.config, tenant, deadline_s))
        if len(answers) != 1:
            raise ModelFailed(
                f"model '{entry.config.name}' is decoupled and answered {len(answers)} times: this call takes exactly one answer; "
                "ask for a stream"
            )
        return _result(answers[0], unit)

    async def stream(self, call: InferCall, heard: Callable[[InferResult], None], tenant: Tenant = NOBODY) -> None:
        unit = self._unit(call.version)
        entry = self._steps[unit.model, unit.version]
        await entry.stream(_ask(call, entry.config, tenant), lambda answer: heard(_result(answer, unit)))

    async def resolve(self, name: str, version: int, ask: Ask) -> list[Answer]:
        """For ensembles, and for models that call others: the model of this repository with that name."""
        return await self._step(name, version).infer(ask)

    async def resolve_stream(self, name: str, version: int, ask: Ask, on_part: Callable[[Answer], None]) -> None:
        await self._step(name, version).stream(ask, on_part)

    def _step(self, name: str, version: int) -> Step:
        """Raises BadInput."""
        unit = self._repository.unit(name, version)
        step = self._steps.get((unit.model, unit.version)) if unit is not None else None
        if step is None:
            known = ", ".join(sorted({unit.model for unit in self._repository.units}))
            raise BadInput(
                f"there is no model '{name}'{'' if version == -1 else f' of version {version}'} in this package: it holds {known}"
            )
        return step

    def mark_runs(self, marked: Callable[[LoadedModel], LoadedModel]) -> None:
        for step in self._steps.values():
            if isinstance(step, MappedStep):
                step.mark_runs(marked)

    async def close(self) -> None:
        await asyncio.gather(*(step.close() for step in self._steps.values()))

    def _unit(self, version: str) -> Unit:
        """Of the entry; of a version that was checked."""
        unit = self._repository.unit(self._repository.entry, int(version) if version else -1)
        assert unit is not None, "a repository without its entry. This is a bug."
        return unit


def _ask(call: InferCall, config: TritonConfig, tenant: Tenant, deadline_s: float | None = None) -> Ask:
    """Raises BadInput."""
    shapes.check(call.inputs, config)
    inputs = tuple(NamedArray(tensor.name, tensor.datatype, tensor.data) for tensor in call.inputs.values())
    return Ask(inputs, call.wanted, call.parameters, call.id or "", tenant=tenant, deadline_s=deadline_s)


def _result(answer: Answer, unit: Unit) -> InferResult:
    outputs = tuple(Tensor(tensor.name, tensor.datatype, tensor.data) for tensor in answer.outputs)
    return InferResult(outputs, dict(answer.parameters), str(unit.version), answer.is_final)
