"""Which models an unpacked artifact holds, and whether they fit together.

config.pbtxt, 1/…                     one model
NAME/config.pbtxt, NAME/1/…           one model
several of these folders              an ensemble and its steps, or a model and those that it calls
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.errors import BadPackage
from flatshare.core.settings import StoreLimits
from flatshare.package.triton.ensemble import check_ensemble
from flatshare.package.triton.mapped import MappedVersion, completed, read_version
from flatshare.wire import triton_config
from flatshare.wire.triton_config import BACKENDS, ENSEMBLE, MAPPED, ConfigJson, TritonConfig

CONFIG = "config.pbtxt"
_MAX_MODELS = 64


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model's folder, read."""

    folder: Path
    config: TritonConfig
    json: ConfigJson
    versions: tuple[int, ...]
    """Those that its policy serves."""
    mapped: Mapping[int, MappedVersion] = field(default_factory=dict)
    """Of backend mapped: the checkpoint of each version."""


@dataclass(frozen=True, slots=True)
class FoundRepository:
    """All models of the artifact, and the one that callers reach."""

    models: Mapping[str, FoundModel]
    entry: str
    notes: tuple[str, ...]


def is_repository(folder: Path) -> bool:
    """Whether this is for Triton rather than a checkpoint: it has a config.pbtxt, or a version's folder with a model in it."""
    return _is_model(folder) or any(_is_model(child) for child in _folders(folder))


def read_repository(folder: Path, limits: StoreLimits) -> FoundRepository:
    """Raises BadPackage or UnsupportedModel with the first thing that is wrong."""
    folders = [folder] if _is_model(folder) else [child for child in _folders(folder) if _is_model(child)]
    if len(folders) > _MAX_MODELS:
        raise BadPackage(f"the repository holds {len(folders)} models, at most {_MAX_MODELS} are accepted in one artifact")
    models = {}
    for path in folders:
        model = _read_model(path, limits, is_top=path == folder)
        models[model.config.name] = model
    for model in models.values():
        check_ensemble(model.config, {name: other.config for name, other in models.items()})
    entry, notes = _entry(models)
    return FoundRepository(models, entry, notes)


def _read_model(folder: Path, limits: StoreLimits, *, is_top: bool) -> FoundModel:
    """A model's name is its folder's, as on Triton; the folder at the top is named by the platform, so there the config's name counts."""
    path = folder / CONFIG
    if path.is_file() and path.stat().st_size > limits.max_json_bytes:
        raise BadPackage(f"{folder.name}/{CONFIG} has more than {limits.max_json_bytes} bytes")
    try:
        text = path.read_text() if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise BadPackage(f"{folder.name}/{CONFIG} is not text: {error}") from error
    json = triton_config.parse(text, folder.name)
    name = json["name"] if is_top and json["name"] else folder.name
    present = _versions(folder)
    if not json["backend"] and not json["platform"]:
        json["backend"] = _backend_of(folder, present)
    config = triton_config.read(json, name)
    json["name"] = name
    versions = config.versions.choose(present)
    if not versions:
        if config.backend != ENSEMBLE:
            raise BadPackage(f"model '{name}' has none of the versions that its version_policy serves: folders named by a number hold them")
        versions = (1,)  # an ensemble has nothing to keep in a version's folder, and archives lose empty folders
    for version in versions:
        _check_files(folder, config, version)
    if config.backend != MAPPED:
        return FoundModel(folder, config, json, versions)
    checkpoints = {version: read_version(folder, config, version, limits) for version in versions}
    json = completed(json, config, checkpoints)
    return FoundModel(folder, triton_config.read(json, name), json, versions, checkpoints)


def _backend_of(folder: Path, versions: tuple[int, ...]) -> str:
    """By the file in a version's folder, as Triton completes a config; empty if there is none of the usual names."""
    found = {backend for backend, file in BACKENDS.items() for version in versions if file and (folder / str(version) / file).is_file()}
    return found.pop() if len(found) == 1 else ""


def _check_files(folder: Path, config: TritonConfig, version: int) -> None:
    if config.backend in {ENSEMBLE, MAPPED} or not config.file:
        return
    if not (folder / str(version) / config.file).is_file():
        raise BadPackage(f"model '{config.name}', version {version}: backend {config.backend} needs the file {version}/{config.file}")
    if config.backend == "pytorch" and not (config.inputs and config.outputs):
        raise BadPackage(
            f"model '{config.name}': TorchScript does not say what it takes and gives, so config.pbtxt must name inputs and outputs"
        )


def _entry(models: Mapping[str, FoundModel]) -> tuple[str, tuple[str, ...]]:
    """An ensemble that is no step of another; without one the last by name, as Triton takes the last that it meets."""
    steps = {step.model for model in models.values() for step in model.config.steps}
    ensembles = sorted(name for name, model in models.items() if model.config.backend == ENSEMBLE and name not in steps)
    entry = (ensembles or sorted(models))[-1]
    candidates = ensembles or sorted(models)
    if len(candidates) == 1:
        return entry, ()
    return entry, (
        f"callers reach '{entry}', the last of {', '.join(candidates)}: pack one ensemble, or one model with those that it calls",
    )


def _is_model(folder: Path) -> bool:
    if (folder / CONFIG).is_file():
        return True
    return any((folder / str(version) / file).is_file() for version in _versions(folder) for file in BACKENDS.values() if file)


def _versions(folder: Path) -> tuple[int, ...]:
    return tuple(
        sorted(int(child.name) for child in _folders(folder) if child.name.isascii() and child.name.isdigit() and child.name[0] != "0")
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")) if folder.is_dir() else []
