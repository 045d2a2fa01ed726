"""All worker processes of an instance: grouped by code version, supervised, their models asked and answered."""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatshare import pyworker
from flatshare.core.errors import BadInput, FlatshareError, ModelFailed, Overloaded, Quarantined
from flatshare.core.ids import Tenant
from flatshare.core.settings import SharingSettings, WorkerSettings
from flatshare.instance.workers.group import Group
from flatshare.instance.workers.metrics import ModelMetrics
from flatshare.instance.workers.process import WorkerProcess
from flatshare.instance.workers.records import Answer, Ask, Model, Place, Rider
from flatshare.instance.workers.spare import Spare
from flatshare.policy import workers as policy
from flatshare.policy.workers import Quarantine
from flatshare.pyworker.frames import Frame, NamedArray
from flatshare.store.published import PublishedCode
from flatshare.telemetry.log import get_logger

log = get_logger("workers")
_SWEEP_S = 1.0
_MAX_WAITING = 512
_MAX_HISTORIES = 1000
_INVALID, _INTERNAL = 3, 1
"""Codes of pb_utils.TritonError."""

Resolve = Callable[[str, int, Ask], Awaitable[list[Answer]]]
"""How a model of a package calls another of the same package: name, version, request."""


@dataclass(slots=True)
class _History:
    """What a model has done to its workers."""

    failures_s: list[float] = field(default_factory=list)
    last_reason: str = ""
    quarantine: Quarantine | None = None


class WorkerPool:
    """Made, used and closed on one event loop. Tenants have their turns by the weights that `sharing` gives them."""

    def __init__(self, settings: WorkerSettings, sharing: SharingSettings) -> None:
        self._settings = settings
        self._sharing = sharing
        self._shim = _shim()
        self._groups: dict[str, Group] = {}
        self._resolvers: dict[str, Resolve] = {}
        self._histories: dict[str, _History] = {}
        self._numbers = itertools.count(1)
        self.metrics = ModelMetrics()
        self._spare = Spare(self._start_own, is_on=settings.has_spare)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._published = None if settings.published_code is None else PublishedCode(settings.published_code)
        self._ended = 0
        self._riding = 0

    async def add(self, place: Place, group: str, resolve: Resolve) -> Model:
        """Load a model into a worker of its code version. Raises ModelFailed, Quarantined, UnpublishedCode, WorkerDied, OutOfMemory."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        model = Model(place, place.config)
        self._check(model)
        self._resolvers[place.key] = resolve
        try:
            await self._group(group).add(model)
        except BaseException:
            self._resolvers.pop(place.key, None)
            self._drop_if_empty(group)
            raise
        self._spare.prepare(place.unit.imports)
        return model

    async def infer(self, model: Model, group: str, ask: Ask, on_part: Callable[[Answer], None] | None = None) -> list[Answer]:
        """One answer; of a decoupled model any number, to `on_part` as they come. Raises what went wrong, for this request alone."""
        self._check(model)
        if model.place.key in ask.chain:
            raise ModelFailed(f"model '{model.place.unit.model}' calls itself: it would wait for its own answer for ever")
        if len(model.queue) >= _MAX_WAITING:
            raise Overloaded(
                f"{len(model.queue)} requests wait for model '{model.place.unit.model}': call again later, or give it more instances"
            )
        rider = Rider(next(self._numbers), ask, _rows(ask, model), asyncio.get_running_loop().create_future(), on_part)
        self._groups[group].ride(model, rider)
        self._riding += 1
        try:
            return await rider.done
        except asyncio.CancelledError:
            self._groups[group].cancel(rider.number)
            raise
        finally:
            self._riding -= 1

    async def remove(self, model: Model, group: str) -> None:
        """Unload it everywhere; its memory is free when this returns."""
        self._resolvers.pop(model.place.key, None)
        await self._groups[group].remove(model)
        self._drop_if_empty(group)

    @property
    def anonymous_bytes(self) -> int:
        """Private memory of all workers, the spare too."""
        return sum(worker.anonymous_bytes for worker in self._workers())

    def statistics(self) -> dict[str, int]:
        now = asyncio.get_running_loop().time()
        refused = sum(1 for h in self._histories.values() if h.quarantine is not None and h.quarantine.until_s > now)
        return {
            "workers": len(self._workers()),
            "workers_ended": self._ended,
            "code_versions": len(self._groups),
            "models_quarantined": refused,
            "model_metrics_dropped": self.metrics.dropped,
        }

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(self._spare.close(), *(group.close() for group in self._groups.values()))
        shutil.rmtree(self._shim, ignore_errors=True)

    # Workers.

    def _group(self, key: str) -> Group:
        if key not in self._groups:
            self._groups[key] = Group(self._settings, self._start, self._failed, self._check, self._weight)
        return self._groups[key]

    def _weight(self, tenant: Tenant) -> float:
        return self._sharing.tenant(tenant).weight

    def _drop_if_empty(self, key: str) -> None:
        if key in self._groups and self._groups[key].is_empty:
            del self._groups[key]

    async def _start(self, python: Path | None) -> WorkerProcess:
        if python is None:
            return await self._spare.take()
        return await WorkerProcess.start(python, self._shim, self._settings, self._on_notice, self._on_end)

    async def _start_own(self) -> WorkerProcess:
        return await WorkerProcess.start(None, self._shim, self._settings, self._on_notice, self._on_end)

    def _workers(self) -> list[WorkerProcess]:
        found = [worker for group in self._groups.values() for worker in group.workers]
        return found if self._spare.worker is None else [*found, self._spare.worker]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._spare.tick(is_quiet=self._riding == 0)
            for group in tuple(self._groups.values()):
                await group.replace_leaking()

    def _on_end(self, worker: WorkerProcess) -> None:
        for group in self._groups.values():
            if group.has(worker):
                self._ended += 1
                group.ended(worker)
                self._spare.prepare(())

    # Quarantine.

    def _failed(self, model: Model, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._histories) >= _MAX_HISTORIES:
            del self._histories[next(iter(self._histories))]
        history = self._histories.setdefault(model.place.identity, _History())
        history.failures_s = [*history.failures_s[-9:], now]
        history.last_reason = reason
        history.quarantine = policy.quarantine(history.failures_s, now, history.quarantine)
        if history.quarantine is not None:
            back_in_s = round(history.quarantine.until_s - now)
            log.error("model_quarantined", model=model.place.unit.model, reason=reason, for_s=back_in_s, episode=history.quarantine.episode)

    def _check(self, model: Model) -> None:
        """Before each load and each request, so that what was revoked runs no more. Raises Quarantined or UnpublishedCode."""
        place = model.place
        brings_code = place.config.backend == "python" or place.python is not None  # an interpreter of its own runs for any backend
        if self._published is not None and brings_code:
            self._published.require(model.place.unit.code, model.place.unit.model)
        history = self._histories.get(model.place.identity)
        if history is None or history.quarantine is None:
            return
        left_s = history.quarantine.until_s - asyncio.get_running_loop().time()
        if left_s > 0:
            raise Quarantined(
                f"model '{model.place.unit.model}' has brought down its worker {len(history.failures_s)} times, the last time because "
                f"{history.last_reason}: it is refused for another {left_s:.0f} s; correct the package, which makes it a new model"
            )

    # What workers say.

    def _on_notice(self, worker: WorkerProcess, frame: Frame) -> None:
        fields = frame.fields
        if frame.kind == "part":
            for group in self._groups.values():
                if group.has(worker):
                    group.part(frame)
        elif frame.kind == "log":
            name = self._name_of(fields["model"])
            log.log(
                {"debug": 10, "info": 20, "warning": 30, "error": 40}.get(fields["level"], 20),
                "model_says",
                model=name,
                text=fields["message"],
            )
        elif frame.kind == "metrics":
            self.metrics.take(fields["series"], self._name_of(str(fields["model"])))
        elif frame.kind == "is_ready":
            package = str(fields["model"]).partition("/")[0]
            wanted = f"{package}/{fields['name']}/{fields['version']}".rstrip("/")
            worker.tell("answer", ask=fields["ask"], is_ready=any(f"{key}/".startswith(f"{wanted}/") for key in self._resolvers))
        elif frame.kind == "ask":
            task = asyncio.get_running_loop().create_task(self._answer(worker, frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, worker: WorkerProcess, frame: Frame) -> None:
        """A model calls another of its package."""
        fields = frame.fields
        caller = self._model(str(fields["model"]))
        resolve = self._resolvers.get(str(fields["model"]))
        try:
            if caller is None or resolve is None:
                raise BadInput("the calling model is not loaded")
            ask = Ask(
                frame.tensors, tuple(fields["wanted"]), dict(fields["parameters"]), str(fields["request_id"]), caller.chain, caller.tenant
            )
            answers = await resolve(str(fields["name"]), int(fields["version"]), ask)
        except FlatshareError as error:
            code = _INVALID if isinstance(error, BadInput) else _INTERNAL
            worker.tell("answer", ask=fields["ask"], responses=[{"error": str(error), "code": code, "count": 0}])
            return
        tensors: list[NamedArray] = [tensor for answer in answers for tensor in answer.outputs]
        described: list[dict[str, Any]] = [{"count": len(a.outputs), "parameters": dict(a.parameters)} for a in answers]
        worker.tell("answer", tensors, ask=fields["ask"], responses=described)

    def _model(self, key: str) -> Model | None:
        return next((found for group in self._groups.values() if (found := group.model(key)) is not None), None)

    def _name_of(self, key: str) -> str:
        model = self._model(key)
        return model.place.unit.model if model is not None else key


def _rows(ask: Ask, model: Model) -> int:
    """How much of max_batch_size a request takes."""
    if model.config.max_batch_size <= 0 or not ask.inputs or not ask.inputs[0].data.shape:
        return 1
    return int(ask.inputs[0].data.shape[0])


def _shim() -> Path:
    """A folder from which a worker imports `flatshare.pyworker`, and nothing else of flatshare, whichever Python it is."""
    folder = Path(tempfile.mkdtemp(prefix="flatshare-workers-"))
    package = folder / "flatshare"
    package.mkdir()
    (package / "__init__.py").write_text('"""Only the worker."""\n')
    (package / "pyworker").symlink_to(Path(next(iter(pyworker.__path__))).resolve(), target_is_directory=True)
    return folder
