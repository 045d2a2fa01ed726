"""The worker's main: load, run and unload models as the instance says, one thing at a time, and keep the house clean in the pauses."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from flatshare.pyworker.backend_utils import MODULE, module_for
from flatshare.pyworker.engines import Engine, ModelPlace, OnnxEngine, PythonEngine, TorchScriptEngine, WrongModel, checked_against
from flatshare.pyworker.frames import Frame, NamedArray
from flatshare.pyworker.hygiene import Hygiene
from flatshare.pyworker.link import Link
from flatshare.pyworker.mapping import SharedTensors, TensorPlace
from flatshare.pyworker.metrics import Ledger, Metric
from flatshare.pyworker.namespace import Namespaces
from flatshare.pyworker.requests import InferenceRequest, InferenceResponse, TritonError
from flatshare.pyworker.tensors import Tensor

_PAUSE_S = 0.05
_LONGEST_SENTENCE = 4000


class Host:
    """All models of one worker process."""

    def __init__(self, link: Link, hygiene: Hygiene) -> None:
        self._link = link
        self._hygiene = hygiene
        self._namespaces = Namespaces()
        self._models: dict[str, Engine] = {}
        self._ledger = Ledger()

    def run(self) -> None:
        """Until the instance says stop; raises InstanceGone if it hangs up."""
        self._link.send("ready", python=sys.version.split()[0])
        jobs = {"load": self._load, "infer": self._infer, "unload": self._unload, "warm": self._warm}
        while True:
            job = self._link.next_job(_PAUSE_S if self._hygiene.is_due else None)
            if job is None:
                self._hygiene.tidy()
                self._tell_metrics("")
            elif job.kind == "stop":
                self._close_all()
                return
            else:
                jobs[job.kind](job)

    def _warm(self, job: Frame) -> None:
        """Import ahead of the first model what such models import. What is not there is no fault: the model will say so."""
        for name in job.fields["modules"]:
            with self._failures_logged("", f"import {name}"):
                import_module(name)
        self._hygiene.after_import(has_models=bool(self._models))
        self._link.send("warmed", id=job.fields["id"])

    def _load(self, job: Frame) -> None:
        key = job.fields["model"]
        place = _place(job.fields)
        try:
            engine = self._engine(job.fields["engine"], place, key)
        except BaseException as error:  # noqa: BLE001  # the worker's main: a model's code may raise anything, SystemExit too
            self._link.send("failed", id=job.fields["id"], **_described(error, f"model '{place.name}' failed to load"))
            return
        finally:
            self._hygiene.after_run()
        self._models[key] = engine
        self._hygiene.after_import(has_models=True)
        self._tell_metrics(key)
        self._link.send("loaded", id=job.fields["id"], config=engine.config)

    def _engine(self, kind: str, place: ModelPlace, key: str) -> Engine:
        self._hygiene.before_run()
        if kind == "pytorch":
            return TorchScriptEngine(place)
        if kind == "onnxruntime":
            return OnnxEngine(place)
        utilities = module_for(ModelVoice(self._link, key, place.name, self._ledger), place.shared)
        folders = [str(place.path.parent), place.folder]
        return PythonEngine(place, self._namespaces.new(folders, {MODULE: utilities}))

    def _infer(self, job: Frame) -> None:
        """Answer each request of the batch. Nothing of it is kept once this returns."""
        key, identity = job.fields["model"], job.fields["id"]
        engine = self._models[key]
        requests = _requests(job, ModelVoice(self._link, key, "", self._ledger), is_decoupled=job.fields["is_decoupled"])
        self._hygiene.before_run()
        try:
            responses = engine.execute(requests)
        except BaseException as error:  # noqa: BLE001  # as above
            described = _described(error, f"model '{job.fields['name']}' failed")
            self._link.send("done", id=identity, responses=[described] * len(requests))
            return
        finally:
            self._hygiene.after_run()
            self._tell_metrics(key)
        self._send_done(identity, engine, requests, responses)

    def _send_done(self, identity: int, engine: Engine, requests: list[InferenceRequest], responses: Any) -> None:
        described: list[dict[str, Any] | None] = []
        tensors: list[NamedArray] = []
        for request, response in zip(requests, responses or [None] * len(requests), strict=True):
            if response is None:
                described.append(None)
                continue
            kept = _wanted(response, request.requested_output_names())
            described.append({**_response_fields(response), "count": len(kept)})
            tensors += kept
        remarks = checked_against(engine.config, {tensor.name: tensor for tensor in tensors})
        self._link.send("done", tuple(tensors), id=identity, responses=described, remarks=remarks)

    def _unload(self, job: Frame) -> None:
        engine = self._models.pop(job.fields["model"], None)
        fields: dict[str, Any] = {}
        if engine is not None:
            try:
                engine.close()
            except BaseException as error:  # noqa: BLE001  # as above
                fields = _described(error, f"finalize of model '{job.fields['name']}' failed")
        del engine
        self._hygiene.after_unload()
        self._link.send("unloaded", id=job.fields["id"], **fields)

    def _tell_metrics(self, key: str) -> None:
        if changed := self._ledger.take():
            self._link.send("metrics", model=key, series=changed)

    def _close_all(self) -> None:
        for key, engine in self._models.items():
            with self._failures_logged(key, "finalize"):
                engine.close()

    @contextmanager
    def _failures_logged(self, key: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # the worker's main
            self._link.send("log", model=key, level="warning", message=f"{what}: {type(error).__name__}: {error}"[:_LONGEST_SENTENCE])


class ModelVoice:
    """What one model says to the instance: calls of other models, responses of a decoupled one, log messages."""

    def __init__(self, link: Link, key: str, name: str, ledger: Ledger) -> None:
        self._link = link
        self._key = key
        self._name = name
        self._ledger = ledger

    def call(self, request: InferenceRequest, *, is_decoupled: bool) -> list[InferenceResponse]:
        answer = self._link.ask(
            "ask",
            tuple(tensor.named for tensor in request.inputs()),
            model=self._key,
            name=request.model_name(),
            version=request.model_version(),
            wanted=request.requested_output_names(),
            request_id=request.request_id(),
            parameters=request.parameter_map,
            is_decoupled=is_decoupled,
        )
        return _responses(answer)

    def is_ready(self, name: str, version: str) -> bool:
        return bool(self._link.ask("is_ready", model=self._key, name=name, version=version).fields["is_ready"])

    def metric_changed(self, metric: Metric) -> None:
        self._ledger.metric_changed(metric)

    def log(self, level: str, message: str) -> None:
        self._link.send("log", model=self._key, level=level, message=message[:_LONGEST_SENTENCE])

    def send_part(self, request_id: int, response: InferenceResponse | None, *, is_final: bool) -> None:
        fields = {} if response is None else _response_fields(response)
        tensors = () if response is None else tuple(tensor.named for tensor in response.output_tensors())
        self._link.send("part", tensors, request=request_id, is_final=is_final, has_response=response is not None, **fields)
        if is_final:
            self._link.forget(request_id)

    def is_cancelled(self, request_id: int) -> bool:
        return self._link.take_cancelled(request_id)


def _place(fields: dict[str, Any]) -> ModelPlace:
    places = {
        str(Path(fields["folder"], file).resolve()): {
            name: TensorPlace(str(Path(fields["folder"], path)), offset) for name, (path, offset) in found.items()
        }
        for file, found in fields["shared"].items()
    }
    return ModelPlace(fields["name"], fields["folder"], fields["version"], fields["file"], fields["config"], SharedTensors(places))


def _requests(job: Frame, voice: ModelVoice, *, is_decoupled: bool) -> list[InferenceRequest]:
    tensors = iter(job.tensors)
    requests = []
    for fields in job.fields["requests"]:
        inputs = [Tensor.of(next(tensors)) for _ in range(fields["count"])]
        request = InferenceRequest(
            job.fields["name"], fields["wanted"], inputs, fields["request_id"], fields["correlation_id"], int(job.fields["version"]),
            fields["flags"], fields["timeout"], parameters=fields["parameters"],
        )  # fmt: skip
        request.attach(voice, fields["id"], has_sender=is_decoupled)
        requests.append(request)
    return requests


def _responses(answer: Frame) -> list[InferenceResponse]:
    tensors = iter(answer.tensors)
    found = []
    for fields in answer.fields["responses"]:
        error = TritonError(fields["error"], fields["code"]) if "error" in fields else None
        found.append(InferenceResponse([Tensor.of(next(tensors)) for _ in range(fields["count"])], error, fields.get("parameters")))
    return found


def _response_fields(response: InferenceResponse) -> dict[str, Any]:
    error = response.error()
    if error is not None:
        return {"error": error.message()[:_LONGEST_SENTENCE], "code": error.code()}
    return {"parameters": response.parameter_map}


def _wanted(response: InferenceResponse, names: list[str]) -> list[NamedArray]:
    """The outputs asked for; an error has none."""
    if response.has_error():
        return []
    return [tensor.named for tensor in response.output_tensors() if not names or tensor.name() in names]


def _described(error: BaseException, what: str) -> dict[str, Any]:
    """A sentence for the caller, and the traceback for the operator."""
    if isinstance(error, MemoryError):
        return {
            "error": f"{what}: out of memory: it asked for more than a worker may have",
            "code": TritonError.UNAVAILABLE,
            "count": 0,
            "is_memory": True,
        }
    reason = str(error) if isinstance(error, WrongModel) else f"{type(error).__name__}: {error}"
    lines = traceback.format_exception(error, limit=-8)
    return {
        "error": f"{what}: {reason}"[:_LONGEST_SENTENCE],
        "code": TritonError.INTERNAL,
        "count": 0,
        "traceback": "".join(lines)[-_LONGEST_SENTENCE:],
    }
