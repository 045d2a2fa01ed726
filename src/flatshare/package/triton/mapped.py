"""Models of a repository with the backend `mapped`: checkpoints in their versions' folders, and configs that must agree with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.ids import Digest
from flatshare.core.interface import IDS, ONE_ROW_EACH, PASSAGES, QUERY, TEXT, signature_of
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Signature, TensorInfo
from flatshare.package.encoder import EncoderParts, manifest_of, read_encoder, tokenizer_of
from flatshare.package.generation.importer import is_generating
from flatshare.package.triton.environment import PARAMETER
from flatshare.wire.triton_config import ConfigJson, ConfigTensor, TritonConfig

_OWN_WORKER = "FLATSHARE_OWN_WORKER"


@dataclass(frozen=True, slots=True)
class MappedVersion:
    """One version of a mapped model, read and checked."""

    parts: EncoderParts
    tokenizer: bytes
    signature: Signature


def read_version(folder: Path, config: TritonConfig, version: int, limits: StoreLimits) -> MappedVersion:
    """Raises BadPackage or UnsupportedModel, with the model's name, unless the version's folder holds an encoder's checkpoint."""
    place, where = folder / str(version), f"model '{config.name}', version {version}"
    try:
        if is_generating(place, limits):
            raise UnsupportedModel("models that write are not served inside a repository: package the checkpoint as a model of its own")
        parts = read_encoder(place, limits)
        tokenizer = tokenizer_of(parts)
    except (BadPackage, UnsupportedModel) as error:
        raise type(error)(f"{where}: {error}") from error
    return MappedVersion(parts, tokenizer, signature_of(manifest_of(parts, Digest(""), Digest(""), ())))


def completed(json: ConfigJson, config: TritonConfig, versions: Mapping[int, MappedVersion]) -> ConfigJson:
    """With the inputs and outputs that the config leaves out, as Triton completes an ONNX model's; by the latest version.

    Raises BadPackage where the config contradicts a checkpoint, UnsupportedModel for what a mapped model has no use for.
    """
    _require_sense(config)
    for version, found in versions.items():
        _check(config, found.signature, f"model '{config.name}', version {version}")
    latest = versions[max(versions)].signature
    stated = {"input": _stated(latest.inputs, config), "output": _stated(latest.outputs, config)}
    return {**json, **{kind: tensors for kind, tensors in stated.items() if not json.get(kind)}}


def _require_sense(config: TritonConfig) -> None:
    if config.is_decoupled:
        raise BadPackage(f"model '{config.name}': backend mapped answers every request once, so it cannot be decoupled")
    if config.file:
        raise BadPackage(f"model '{config.name}': backend mapped reads a whole checkpoint: leave default_model_filename out")
    for name in (PARAMETER, _OWN_WORKER):
        if name in config.parameters:
            raise UnsupportedModel(f"model '{config.name}': parameter {name} is for models in workers; backend mapped runs in none")


def _check(config: TritonConfig, signature: Signature, where: str) -> None:
    if config.max_batch_size > 0 and signature.task not in ONE_ROW_EACH:
        raise BadPackage(f"{where}: {signature.task} does not answer one row for each of its inputs: leave max_batch_size out")
    for kind, stated, known in (("input", config.inputs, signature.inputs), ("output", config.outputs, signature.outputs)):
        by_name = {info.name: info for info in known}
        for tensor in stated:
            if tensor.name not in by_name:
                raise BadPackage(f"{where}: the config names the {kind} '{tensor.name}', the checkpoint has {', '.join(by_name)}")
            _check_tensor(config, tensor, by_name[tensor.name], f"{where}: {kind} '{tensor.name}'", is_input=kind == "input")
    names = {tensor.name for tensor in config.inputs}
    if names and not names & {TEXT, IDS} and not {QUERY, PASSAGES} <= names:
        raise BadPackage(f"{where}: with {', '.join(sorted(names))} alone nothing can be asked; the checkpoint takes {_listed(signature)}")


def _check_tensor(config: TritonConfig, tensor: ConfigTensor, info: TensorInfo, where: str, *, is_input: bool) -> None:
    if tensor.datatype != info.datatype:
        raise BadPackage(f"{where} is {tensor.datatype} in the config, {info.datatype} in the checkpoint")
    dims = tensor.dims if tensor.model_shape is None else tensor.model_shape
    shape = (-1, *dims) if config.max_batch_size > 0 else dims
    is_column = is_input and len(shape) == len(info.shape) + 1 and shape[-1] in {1, -1}  # a text in each row
    compared = shape[:-1] if is_column else shape
    if len(compared) != len(info.shape) or any(-1 not in pair and pair[0] != pair[1] for pair in zip(compared, info.shape, strict=True)):
        raise BadPackage(f"{where} has shape {list(shape)} in the config, {list(info.shape)} in the checkpoint")


def _stated(infos: tuple[TensorInfo, ...], config: TritonConfig) -> list[dict[str, Any]]:
    """As config.pbtxt would say it. With a batch dimension, a text is one element of a row."""
    has_batch = config.max_batch_size > 0
    return [
        {
            "name": info.name,
            "data_type": f"TYPE_{'STRING' if info.datatype == 'BYTES' else info.datatype}",
            "dims": list((info.shape[1:] or (1,)) if has_batch else info.shape),
            "optional": info.is_optional,
        }
        for info in infos
    ]


def _listed(signature: Signature) -> str:
    return ", ".join(info.name for info in signature.inputs)
