"""What a worker can run: a model's own Python code, TorchScript, ONNX. Each engine is one loaded model."""

import asyncio
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from flatshare.pyworker import batches
from flatshare.pyworker.config import Config, ModelConfig
from flatshare.pyworker.frames import NamedArray
from flatshare.pyworker.mapping import SharedTensors
from flatshare.pyworker.namespace import Namespace
from flatshare.pyworker.requests import InferenceRequest, InferenceResponse, TritonError
from flatshare.pyworker.tensors import Tensor, config_datatype

Responses = Sequence[InferenceResponse | None] | None


class WrongModel(Exception):
    """The package is wrong, in a sentence for its owner."""


@dataclass(frozen=True)
class ModelPlace:
    """What a worker is told of a model that it is to load."""

    name: str
    folder: str
    version: str
    file: str
    config: Config
    shared: SharedTensors

    @property
    def path(self) -> Path:
        return Path(self.folder, self.version, self.file)


class Engine(Protocol):
    """One loaded model."""

    config: Config
    """As completed by the model itself."""

    def execute(self, requests: list[InferenceRequest]) -> Responses:
        """One response for each request; None for those that a sender answers."""

    def close(self) -> None:
        """Let go of everything."""


class PythonEngine:
    """A `TritonPythonModel`."""

    def __init__(self, place: ModelPlace, namespace: Namespace) -> None:
        self._namespace = namespace
        self.config = place.config
        with namespace.active():
            kind = self._model_class(namespace.load(f"{place.version}.{place.file.removesuffix('.py')}"), place)
            if hasattr(kind, "auto_complete_config"):
                self.config = self._completed(kind, place)
            self._model: Any = kind()
            if hasattr(self._model, "initialize"):
                self._model.initialize(_arguments(place, self.config))
        if not callable(getattr(self._model, "execute", None)):
            raise WrongModel(f"TritonPythonModel of model '{place.name}' has no method execute")

    def execute(self, requests: list[InferenceRequest]) -> Responses:
        with self._namespace.active():
            found = self._model.execute(requests)
            if inspect.iscoroutine(found):
                found = asyncio.run(found)
        return _checked(found, requests)

    def close(self) -> None:
        try:
            if hasattr(self._model, "finalize"):
                with self._namespace.active():
                    self._model.finalize()
        finally:
            self._model = None
            self._namespace.clear()

    def _model_class(self, module: ModuleType, place: ModelPlace) -> Any:
        kind = getattr(module, "TritonPythonModel", None)
        if kind is None:
            raise WrongModel(f"{place.file} of model '{place.name}' has no class TritonPythonModel")
        return kind

    def _completed(self, kind: Any, place: ModelPlace) -> Config:
        completed = kind.auto_complete_config(ModelConfig(json.dumps(place.config)))
        if not isinstance(completed, ModelConfig):
            raise WrongModel(f"auto_complete_config of model '{place.name}' must return the config that it was given")
        return completed.as_dict()


def _arguments(place: ModelPlace, config: Config) -> dict[str, str]:
    """What `initialize` is given."""
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": "CPU",
        "model_instance_name": f"{place.name}_0_0",
        "model_instance_device_id": "0",
        "model_repository": place.folder,
        "model_version": place.version,
        "model_name": place.name,
    }


def _checked(found: Any, requests: list[InferenceRequest]) -> Responses:
    if found is None and all(request.sender is not None for request in requests):
        return None
    if not isinstance(found, list | tuple):
        raise WrongModel(f"execute() must return a list with an InferenceResponse for each request, not {type(found).__name__}")
    if len(found) != len(requests):
        raise WrongModel(f"execute() returned {len(found)} responses for {len(requests)} requests: each request needs exactly one")
    for response, request in zip(found, requests, strict=True):
        is_sent = response is None and request.sender is not None
        if not is_sent and not isinstance(response, InferenceResponse):
            raise WrongModel(f"execute() must return InferenceResponse objects, not {type(response).__name__}")
    return found


class TorchScriptEngine:
    """`model.pt`: inputs by the names of forward's arguments, or by their places as in `INPUT__0`."""

    def __init__(self, place: ModelPlace) -> None:
        try:
            import torch  # noqa: PLC0415  # an optional library
        except ImportError as error:
            raise WrongModel("backend pytorch needs torch: install flatshare[torch]") from error
        self._torch = torch
        self.config = place.config
        try:
            self._model: Any = torch.jit.load(str(place.path), map_location="cpu").eval()
        except RuntimeError as error:
            raise WrongModel(
                f"model '{place.name}': {place.file} is not TorchScript that this torch can load: {_first_line(error)}"
            ) from error
        self._order = _argument_order([tensor["name"] for tensor in place.config["input"]], self._argument_names())

    def execute(self, requests: list[InferenceRequest]) -> Responses:
        return _in_one_or_alone(self._run, requests, self.config)

    def close(self) -> None:
        self._model = None

    def _argument_names(self) -> list[str]:
        return [argument.name for argument in self._model.forward.schema.arguments[1:]]

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        given = {tensor.name(): self._torch.utils.dlpack.from_dlpack(tensor) for tensor in inputs}
        with self._torch.inference_mode():
            found = self._model(*(given.get(name) for name in self._order))
        return [Tensor.from_dlpack(name, value) for name, value in self._named(found)]

    def _named(self, found: Any) -> list[tuple[str, Any]]:
        names = [tensor["name"] for tensor in self.config["output"]]
        if isinstance(found, dict):
            return [(name, found[name].detach().cpu().contiguous()) for name in names if name in found]
        values = list(found) if isinstance(found, list | tuple) else [found]
        if len(values) < len(names):
            raise WrongModel(f"the model returned {len(values)} tensors, its config names {len(names)} outputs")
        order = _places(names) or range(len(names))
        return [(name, values[index].detach().cpu().contiguous()) for name, index in zip(names, order, strict=True)]


class OnnxEngine:
    """`model.onnx` on one thread, its weights mapped from the file beside it if the importer has taken them out."""

    def __init__(self, place: ModelPlace) -> None:
        try:
            import onnxruntime  # noqa: PLC0415  # an optional library
        except ImportError as error:
            raise WrongModel("backend onnxruntime needs the package onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1")  # a packed copy of every weight would be private memory
        self._weights = _mapped_initializers(place, options, onnxruntime)
        try:
            self._session: Any = onnxruntime.InferenceSession(str(place.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has no common base for what a strange file makes it raise
            raise WrongModel(f"model '{place.name}': {place.file} cannot be loaded: {_first_line(error)}") from error
        self.config = _completed_from(self._session, place.config)

    def execute(self, requests: list[InferenceRequest]) -> Responses:
        return _in_one_or_alone(self._run, requests, self.config)

    def close(self) -> None:
        self._session = None
        self._weights = {}

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        given = {tensor.name(): _for_onnx(tensor.as_numpy()) for tensor in inputs}
        names = [tensor["name"] for tensor in self.config["output"]]
        found = self._session.run(names, given)
        return [Tensor(name, value) for name, value in zip(names, found, strict=True)]


def _for_onnx(values: Any) -> Any:
    return (
        np.array([v.decode() if isinstance(v, bytes) else v for v in values.reshape(-1)], object).reshape(values.shape)
        if values.dtype == object
        else values
    )


def _mapped_initializers(place: ModelPlace, options: Any, onnxruntime: Any) -> dict[str, Any]:
    """Views of the weights file, handed to the session instead of copies."""
    path = place.path.with_suffix(".weights.safetensors")
    if not path.is_file():
        return {}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(view) for name, view in place.shared.map_safetensors(str(path)).items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    return values


_ONNX_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL", "string": "STRING", "bfloat16": "BF16"} | {
    name: name.upper() for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


def _completed_from(session: Any, config: Config) -> Config:
    """The graph says what the config leaves out, and the config may not contradict it."""
    completed = ModelConfig(json.dumps(config))
    batch_dims = 1 if config.get("max_batch_size", 0) > 0 else 0
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        stated = {tensor["name"]: tensor for tensor in config.get(kind, [])}
        known = {value.name: value for value in values}
        if unknown := stated.keys() - known.keys():
            raise WrongModel(f"model '{config.get('name')}': the config names the {kind} {sorted(unknown)}, the graph has {sorted(known)}")
        for name in stated or known:
            data_type = "TYPE_" + _ONNX_TYPES[known[name].type[7:-1]]
            if not stated:
                dims = [size if isinstance(size, int) and size > 0 else -1 for size in known[name].shape]
                getattr(completed, f"add_{kind}")({"name": name, "data_type": data_type, "dims": dims[batch_dims:] or [1]})
            elif stated[name]["data_type"] != data_type:
                raise WrongModel(
                    f"model '{config.get('name')}': {kind} '{name}' is {stated[name]['data_type']} in the config, {data_type} in the graph"
                )
    return completed.as_dict()


def _in_one_or_alone(run: batches.Run, requests: list[InferenceRequest], config: Config) -> list[InferenceResponse]:
    """What was gathered to be run together is one run; if that cannot be, each request is one."""
    together = batches.in_one(run, requests, has_rows=config.get("max_batch_size", 0) > 0)
    return [_one(run, request) for request in requests] if together is None else together


def _one(run: batches.Run, request: InferenceRequest) -> InferenceResponse:
    """A request that goes wrong leaves the others of its batch alone."""
    try:
        return InferenceResponse(run(request.inputs()))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # the boundary of a native engine
        return InferenceResponse(
            error=TritonError(_first_line(error), TritonError.INVALID_ARG if isinstance(error, TypeError) else TritonError.INTERNAL)
        )


def _argument_order(inputs: list[str], arguments: list[str]) -> list[str]:
    """The config's input names in the order in which forward takes them."""
    if all(name in inputs for name in arguments[: len(inputs)]):
        return arguments[: len(inputs)] if len(arguments) >= len(inputs) else inputs
    places = _places(inputs)
    if places is not None:
        return [name for _, name in sorted(zip(places, inputs, strict=True))]
    return inputs


def _places(names: list[str]) -> list[int] | None:
    """The numbers of `NAME__0`, `NAME__1` …, if all names have them."""
    ends = [name.rpartition("__")[2] for name in names]
    if not all(end.isdigit() and name != end for end, name in zip(ends, names, strict=True)):
        return None
    places = [int(end) for end in ends]
    return places if sorted(places) == list(range(len(names))) else None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]


def checked_against(config: Config, tensors: Mapping[str, NamedArray]) -> list[str]:
    """What about a model's outputs contradicts its config: for the operator's log."""
    stated = {tensor["name"]: config_datatype(tensor["data_type"]) for tensor in config.get("output", [])}
    return [
        f"output '{n}' is {t.datatype}, its config says {stated[n]}" for n, t in tensors.items() if n in stated and t.datatype != stated[n]
    ]
