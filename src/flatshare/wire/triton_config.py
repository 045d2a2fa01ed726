"""Triton's config.pbtxt ⇄ data: the text parsed by the real protobuf message, its JSON as models are given it, and what we read of it.

The message is NVIDIA's `inference.ModelConfig` as the package tritonclient carries it: https://github.com/triton-inference-server/common
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.signature import TensorInfo
from flatshare.core.tensor import BYTES, DTYPES

ConfigJson = dict[str, Any]
ENSEMBLE, PYTHON, MAPPED = "ensemble", "python", "mapped"
BACKENDS: Mapping[str, str] = {
    PYTHON: "model.py",
    "pytorch": "model.pt",
    "onnxruntime": "model.onnx",
    MAPPED: "",
}
"""What is served, with the file that a version's folder holds; a mapped model's holds a checkpoint of several."""
_PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch", ENSEMBLE: ENSEMBLE}
_MAX_BATCH = 2**20
_MAX_COPIES = 64


@dataclass(frozen=True, slots=True)
class ConfigTensor:
    """One input or output as the config states it. `model_shape` is what the model itself sees, if `reshape` says so."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    is_optional: bool = False
    model_shape: tuple[int, ...] | None = None
    is_ragged: bool = False


@dataclass(frozen=True, slots=True)
class Batching:
    """`dynamic_batching`: how many rows run together, and how long the first of them may wait for more."""

    preferred: tuple[int, ...]
    max_delay_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """One model call of an ensemble. The maps go from the model's tensor names to the ensemble's."""

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WarmupTensor:
    name: str
    datatype: str
    dims: tuple[int, ...]
    kind: str
    """`zero_data`, `random_data`, or the name of a file below `warmup/`."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request that a model answers before it counts as loaded."""

    name: str
    batch_size: int
    count: int
    tensors: tuple[WarmupTensor, ...]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served: the latest so many, or those named; none of both means all."""

    latest: int | None = 1
    named: tuple[int, ...] = ()

    def choose(self, present: tuple[int, ...]) -> tuple[int, ...]:
        """Ascending. Empty if nothing that is named is there."""
        if self.named:
            return tuple(sorted(set(self.named) & set(present)))
        return tuple(sorted(present))[-self.latest :] if self.latest is not None else tuple(sorted(present))


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """A model's config, as far as it decides anything here."""

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[ConfigTensor, ...]
    outputs: tuple[ConfigTensor, ...]
    is_decoupled: bool
    batching: Batching | None
    copies: int
    """How many requests of the model may run at once: its instance groups, added up."""
    steps: tuple[Step, ...]
    versions: VersionPolicy
    parameters: Mapping[str, str]
    warmups: tuple[Warmup, ...]
    file: str

    def tensor_infos(self, tensors: tuple[ConfigTensor, ...]) -> tuple[TensorInfo, ...]:
        """As callers see them: with the batch dimension."""
        batch = (-1,) if self.max_batch_size > 0 else ()
        return tuple(TensorInfo(t.name, t.datatype, batch + t.dims, t.is_optional) for t in tensors)


def parse(text: str, folder: str) -> ConfigJson:
    """The config's JSON, as Triton gives it to a model's `initialize`. Raises BadPackage with the line that is wrong."""
    from google.protobuf import text_format  # noqa: PLC0415  # only the importer parses: an instance must not carry gRPC's memory
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

    message = model_config_pb2.ModelConfig()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # Triton refuses the escapes that Python only frowns at
            text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise BadPackage(f"{folder}/config.pbtxt cannot be read: line {error}") from error
    except DeprecationWarning as error:
        raise BadPackage(f"{folder}/config.pbtxt cannot be read: {error}; a backslash in a text is written twice") from error
    return _as_json(message)


def _as_json(message: Any) -> ConfigJson:
    """Every field with its proto name, 64-bit integers as numbers; messages and alternatives that are not set are left out."""
    found: ConfigJson = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {key: _one(field.message_type.fields_by_name["value"], item) for key, item in value.items()}
        elif field.is_repeated:
            found[field.name] = [_one(field, item) for item in value]
        else:
            found[field.name] = _one(field, value)
    return found


def _one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _as_json(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value


def read(config: ConfigJson, folder: str) -> TritonConfig:
    """What decides anything, checked. Raises BadPackage for a contradiction, UnsupportedModel for what is not served here."""
    backend = _backend(config, folder)
    if config.get("name", folder) not in {"", folder}:
        raise BadPackage(f"{folder}/config.pbtxt names the model '{config['name']}': leave the name out, or let it be the folder's")
    if "sequence_batching" in config:
        raise UnsupportedModel(f"model '{folder}' asks for sequence_batching, which is not served: use correlation ids in the model itself")
    batch = config.get("max_batch_size", 0)
    if not 0 <= batch <= _MAX_BATCH:
        raise BadPackage(f"model '{folder}': max_batch_size must be from 0 to {_MAX_BATCH}, not {batch}")
    return TritonConfig(
        name=folder,
        backend=backend,
        max_batch_size=batch,
        inputs=_tensors(config, "input", folder),
        outputs=_tensors(config, "output", folder),
        is_decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        batching=_batching(config),
        copies=_copies(config, folder),
        steps=_steps(config, folder) if backend == ENSEMBLE else (),
        versions=_versions(config, folder),
        parameters={name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()},
        warmups=tuple(_warmup(item) for item in config.get("model_warmup", [])),
        file=config.get("default_model_filename") or BACKENDS.get(backend, ""),
    )


def _backend(config: ConfigJson, folder: str) -> str:
    stated, platform = config.get("backend", ""), config.get("platform", "")
    implied = _PLATFORMS.get(platform, platform)
    if stated and implied and stated != implied:
        raise BadPackage(f"model '{folder}': backend '{stated}' and platform '{platform}' contradict each other")
    backend = stated or implied
    if not backend:
        raise BadPackage(f"model '{folder}' has neither backend nor platform: set backend to one of {', '.join(BACKENDS)}")
    if backend not in BACKENDS and backend != ENSEMBLE:
        raise UnsupportedModel(f"model '{folder}': backend '{backend}' is not served; {', '.join(BACKENDS)} and ensembles are")
    if backend == ENSEMBLE and "ensemble_scheduling" not in config:
        raise BadPackage(f"ensemble '{folder}' has no ensemble_scheduling")
    if backend != ENSEMBLE and "ensemble_scheduling" in config:
        raise BadPackage(f"model '{folder}' has ensemble_scheduling, and backend '{backend}': an ensemble has platform \"ensemble\"")
    return backend


def _tensors(config: ConfigJson, kind: str, folder: str) -> tuple[ConfigTensor, ...]:
    found = tuple(_tensor(item, kind, folder) for item in config.get(kind, []))
    names = [tensor.name for tensor in found]
    if len(set(names)) != len(names):
        raise BadPackage(f"model '{folder}' names an {kind} twice: {', '.join(names)}")
    return found


def _tensor(item: ConfigJson, kind: str, folder: str) -> ConfigTensor:
    name, stated = item.get("name", ""), item.get("data_type", "TYPE_INVALID").removeprefix("TYPE_")
    datatype = BYTES if stated == "STRING" else stated
    if not name or len(name) > 256:
        raise BadPackage(f"model '{folder}': an {kind} has no name, or one of more than 256 characters")
    if datatype not in DTYPES:
        raise BadPackage(f"model '{folder}': {kind} '{name}' has no data_type")
    dims = tuple(item.get("dims", ()))
    if not dims or not all(n == -1 or n > 0 for n in dims):
        raise BadPackage(f"model '{folder}': {kind} '{name}' has dims {list(dims)}: give one size or more, each positive or -1")
    reshape = item.get("reshape")
    shape = tuple(reshape.get("shape", ())) if reshape is not None else None
    return ConfigTensor(name, datatype, dims, bool(item.get("optional")), shape, bool(item.get("allow_ragged_batch")))


def _batching(config: ConfigJson) -> Batching | None:
    stated = config.get("dynamic_batching")
    if stated is None:
        return None
    return Batching(tuple(stated.get("preferred_batch_size", ())), 1e-6 * stated.get("max_queue_delay_microseconds", 0))


def _copies(config: ConfigJson, folder: str) -> int:
    groups = config.get("instance_group", [])
    for group in groups:
        if group.get("kind") == "KIND_GPU":
            raise UnsupportedModel(f"model '{folder}' asks for KIND_GPU: this instance runs on CPUs, use KIND_CPU or KIND_AUTO")
    copies = sum(max(1, group.get("count", 1)) for group in groups) or 1
    if copies > _MAX_COPIES:
        raise BadPackage(f"model '{folder}': {copies} instances in its instance groups, at most {_MAX_COPIES} are accepted")
    return int(copies)


def _steps(config: ConfigJson, folder: str) -> tuple[Step, ...]:
    steps = config["ensemble_scheduling"].get("step", [])
    if not steps:
        raise BadPackage(f"ensemble '{folder}' has no steps")
    return tuple(_step(s) for s in steps)


def _step(step: ConfigJson) -> Step:
    """A version that is not given is the latest; protobuf reads it as 0."""
    return Step(step.get("model_name", ""), step.get("model_version") or -1, step.get("input_map", {}), step.get("output_map", {}))


def _versions(config: ConfigJson, folder: str) -> VersionPolicy:
    policy = config.get("version_policy", {})
    if "specific" in policy:
        named = tuple(policy["specific"].get("versions", ()))
        if not named:
            raise BadPackage(f"model '{folder}': version_policy specific names no version")
        return VersionPolicy(None, named)
    if "all" in policy:
        return VersionPolicy(None)
    return VersionPolicy(max(1, policy.get("latest", {}).get("num_versions", 1)))


def _warmup(item: ConfigJson) -> Warmup:
    tensors = tuple(_warmup_tensor(name, value) for name, value in item.get("inputs", {}).items())
    return Warmup(item.get("name", ""), max(1, item.get("batch_size", 0)), max(1, item.get("count", 0)), tensors)


def _warmup_tensor(name: str, item: ConfigJson) -> WarmupTensor:
    datatype = item.get("data_type", "TYPE_INVALID").removeprefix("TYPE_")
    kind = item.get("input_data_file") or ("random_data" if item.get("random_data") else "zero_data")
    return WarmupTensor(name, BYTES if datatype == "STRING" else datatype, tuple(item.get("dims", ())), kind)
