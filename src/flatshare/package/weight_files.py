"""All weights of a checkpoint, whatever files they lie in: safetensors, packs, torch's pickles, in shards, of modules."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage
from flatshare.core.ids import TensorDigest
from flatshare.package.folder import Folder
from flatshare.package.packed import LISTING, PackedFile
from flatshare.package.pickles import PickleFile
from flatshare.package.weights import WeightEntry, WeightsFile

_MAX_SHARDS = 1000
_FILES: Mapping[str, Callable[[Path], "TensorFile"]] = {"model.safetensors": WeightsFile, "pytorch_model.bin": PickleFile}


class TensorFile(Protocol):
    """A file of tensors."""

    @property
    def entries(self) -> Mapping[str, WeightEntry]: ...

    def float32(self, entry: WeightEntry) -> NDArray[np.float32]:
        """The tensor as float32. Raises BadPackage if it is no float."""

    def stated(self, entry: WeightEntry) -> TensorDigest | None:
        """The tensor's digest in a store, if it is known without reading it."""


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor, and the file that holds it."""

    file: TensorFile
    entry: WeightEntry

    def float32(self) -> NDArray[np.float32]:
        return self.file.float32(self.entry)

    @property
    def stated(self) -> TensorDigest | None:
        return self.file.stated(self.entry)


class Weights:
    """Every tensor of a checkpoint by name; those of a module by its folder and name, as in "2_Dense/linear.weight"."""

    def __init__(self, found: Mapping[str, FoundTensor]) -> None:
        self._found = found

    def all(self) -> Mapping[str, FoundTensor]:
        return self._found

    def find(self, spellings: Iterable[str]) -> FoundTensor | None:
        """The tensor under the first of the names that exists."""
        return next((self._found[name] for name in spellings if name in self._found), None)


def read_weights(folder: Folder, top: Folder, module_folders: Iterable[str]) -> Weights:
    """Raises BadPackage for what is missing or damaged, UnsupportedModel for what needs an extra that is not installed."""
    return Weights(dict(_tensors(folder)) | _module_tensors(top, module_folders))


def read_module_weights(top: Folder, module_folders: Iterable[str]) -> Weights:
    """Those of the modules alone."""
    return Weights(_module_tensors(top, module_folders))


def has_weights(folder: Folder) -> bool:
    """Whether there is a file of weights, or an index of such files."""
    return any(_has(folder, name) or folder.has(f"{name}.index.json") for name in _FILES)


def _module_tensors(top: Folder, module_folders: Iterable[str]) -> dict[str, FoundTensor]:
    return {f"{name}/{tensor}": place for name in module_folders for tensor, place in _tensors(top.below(name))}


def _tensors(folder: Folder) -> Iterator[tuple[str, FoundTensor]]:
    for name in _FILES:
        if _has(folder, name):
            yield from _all_of(_opened(folder, name, _FILES[name]))
            return
        if folder.has(f"{name}.index.json"):
            yield from _shards(folder, f"{name}.index.json", _FILES[name])
            return
    raise BadPackage(f"{folder.shown('model.safetensors')} is missing: a checkpoint directory is what save_pretrained() writes")


def _has(folder: Folder, name: str) -> bool:
    return folder.has(name) or folder.has(name + LISTING)


def _opened(folder: Folder, name: str, kind: Callable[[Path], TensorFile]) -> TensorFile:
    """Whole, or taken apart into packs."""
    return PackedFile(folder.path / name, folder.limits) if folder.has(name + LISTING) else kind(folder.path / name)


def _all_of(file: TensorFile) -> Iterator[tuple[str, FoundTensor]]:
    for name, entry in file.entries.items():
        yield name, FoundTensor(file, entry)


def _shards(folder: Folder, index: str, opened: Callable[[Path], TensorFile]) -> Iterator[tuple[str, FoundTensor]]:
    """The tensors where the index says that they are. Raises BadPackage if a shard is missing or lacks what the index promises."""
    places = folder.required_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise BadPackage(f"{folder.shown(index)} has no weight_map from tensors to files")
    names = sorted(set(places.values()))
    if len(names) > _MAX_SHARDS:
        raise BadPackage(f"{folder.shown(index)} names {len(names)} files: at most {_MAX_SHARDS} are accepted")
    shards = {}
    for name in names:
        if "/" in name or name.startswith(".") or "\0" in name:
            raise BadPackage(f"{folder.shown(index)} names the file {name[:64]!r}: shards lie beside their index")
        if not _has(folder, name):
            folder.required_path(name, f"{index} names it; copy all shards")
        shards[name] = _opened(folder, name, opened)
    for tensor, name in places.items():
        entry = shards[name].entries.get(tensor)
        if entry is None:
            raise BadPackage(
                f"{folder.shown(name)} lacks the tensor '{tensor[:128]}' that {index} says it has: the files do not belong together"
            )
        yield tensor, FoundTensor(shards[name], entry)
