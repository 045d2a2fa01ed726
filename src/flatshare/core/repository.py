"""A Triton model repository, once imported: what an instance needs to know to serve it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from flatshare.core import manifest_json
from flatshare.core.ids import Digest
from flatshare.core.spec import ModelManifest

GRAPH, TOKENIZER = "graph.onnx", "tokenizer.json"
"""The files that a mapped model's version has in its folder; its tensors are in the store."""


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor whose bytes another file has as well: the path, relative to the model's folder, and the place in it."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One version of one model of the repository."""

    model: str
    version: int
    folder: str
    """The model's folder, relative to the package."""
    config: Mapping[str, Any]
    """As Triton gives it to the model: wire/triton_config.py reads it."""
    code: Digest
    """The code version: sha256 over the model's code files and its environment. Models of one code version share workers."""
    imports: tuple[str, ...]
    """What the code imports from installed packages."""
    environment: Digest | None
    """The archive of EXECUTION_ENV_PATH."""
    weight_bytes: int
    """Of its version's folder: what it may hold in private memory, if it does not map."""
    is_mapping: bool
    """Its weights are mapped: the code uses `pb_utils.map_safetensors`, or the engine does."""
    shared: Mapping[str, Mapping[str, SharedTensor]]
    """By file, relative to the model's folder, and tensor."""
    encoder: ModelManifest | None = None
    """Of backend mapped: the model as it would be if its checkpoint had been imported alone."""


@dataclass(frozen=True, slots=True)
class Repository:
    """The models that were packed together, and the one that callers reach."""

    entry: str
    units: tuple[Unit, ...]

    def unit(self, model: str, version: int = -1) -> Unit | None:
        """The version asked for, or the latest one for -1."""
        found = [unit for unit in self.units if unit.model == model and version in {-1, unit.version}]
        return max(found, key=lambda unit: unit.version, default=None)


def to_json(repository: Repository) -> bytes:
    return orjson.dumps(asdict(repository))


def from_json(text: bytes) -> Repository:
    fields = orjson.loads(text)
    return Repository(fields["entry"], tuple(_unit(unit) for unit in fields["units"]))


def _unit(fields: dict[str, Any]) -> Unit:
    shared = {file: {name: SharedTensor(**place) for name, place in found.items()} for file, found in fields.pop("shared").items()}
    encoder = fields.pop("encoder", None)
    manifest = None if encoder is None else manifest_json.from_fields(encoder)
    return Unit(imports=tuple(fields.pop("imports")), shared=shared, encoder=manifest, **fields)
