"""A Triton repository, in which ensembles and their steps lie side by side, becomes packages that stand alone."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flatshare.core.errors import BadPackage, FlatshareError
from flatshare.wire import triton_config

_CONFIG = "config.pbtxt"
_MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Gathered:
    """One model that callers reach, and what it needs."""

    name: str
    folders: tuple[Path, ...] = ()
    """Its own, and those of its steps."""
    left: str = ""
    """Why it cannot come over."""

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(folder.name for folder in self.folders[1:])


def gather(repository: Path) -> list[Gathered]:
    """Each model with the folders that it needs. A step of an ensemble comes with the ensemble and is not listed for itself."""
    folders = {path.name: path for path in sorted(repository.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    steps, left = {}, {}
    for name, folder in folders.items():
        try:
            steps[name] = _steps(folder)
        except FlatshareError as error:
            left[name] = str(error)
    inner = {step for wanted in steps.values() for step in wanted}
    found = [Gathered(name, left=sentence) for name, sentence in left.items()]
    for name in steps.keys() - inner:
        try:
            found.append(Gathered(name, tuple(folders[step] for step in _reached(name, steps, left))))
        except BadPackage as error:
            found.append(Gathered(name, left=str(error)))
    return sorted(found, key=lambda one: one.name)


def laid_out(gathered: Gathered, place: Path) -> Path:
    """A folder to package: the model's own, or for an ensemble one below `place` that holds it and its steps, as links or copies."""
    if len(gathered.folders) == 1:
        return gathered.folders[0]
    for folder in gathered.folders:
        shutil.copytree(folder, place / gathered.name / folder.name, copy_function=_linked)
    return place / gathered.name


def _steps(folder: Path) -> tuple[str, ...]:
    """The models that an ensemble calls; none of another model, or of a folder that holds several."""
    config = folder / _CONFIG
    if not config.is_file():
        return ()
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise BadPackage(f"{folder.name}/{_CONFIG} has more than {_MAX_CONFIG_BYTES} bytes")
    try:
        json = triton_config.parse(config.read_text(), folder.name)
    except UnicodeDecodeError as error:
        raise BadPackage(f"{folder.name}/{_CONFIG} is not text: {error}") from error
    scheduling = json.get("ensemble_scheduling") or {}
    return tuple(dict.fromkeys(step.get("model_name", "") for step in scheduling.get("step", ())))


def _reached(name: str, steps: Mapping[str, tuple[str, ...]], left: Mapping[str, str]) -> Iterator[str]:
    """The model and whatever it calls, each once."""
    seen, waiting = {name: None}, [name]
    while waiting:
        caller = waiting.pop()
        yield caller
        for step in steps[caller]:
            if step in left:
                raise BadPackage(f"step '{step}' of ensemble '{caller}' cannot come over: {left[step]}")
            if step not in steps:
                raise BadPackage(f"step '{step}' of ensemble '{caller}' is not in the repository: copy its folder there")
            if step not in seen:
                seen[step] = None
                waiting.append(step)


def _linked(source: str, target: str) -> None:
    """A hard link; a copy where the target is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
