"""From an unpacked Triton repository to an immutable package in the store."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, Digest, ModelDigest
from flatshare.core.repository import GRAPH, TOKENIZER, Repository, SharedTensor, Unit, to_json
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import ModelManifest, PackageFile, TensorSpec
from flatshare.package.encoder import manifest_of, stored_tensors
from flatshare.package.triton.code import code_digest, imported_packages, is_mapping
from flatshare.package.triton.environment import PARAMETER, environment_file, unpack_environment
from flatshare.package.triton.onnx_weights import split_weights
from flatshare.package.triton.repository import FoundModel, FoundRepository, read_repository
from flatshare.package.triton.sharing import SHARED, Sharing
from flatshare.store.catalog import insert_file_tensors
from flatshare.store.leftovers import is_left_out
from flatshare.store.packages import StoredFile
from flatshare.store.tensors import StoreWriter, TensorStore
from flatshare.wire.triton_config import MAPPED

_WEIGHTS = ".safetensors"


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """What an import did."""

    manifest: ModelManifest
    new_bytes: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """The files of the repository in the store, and what its models share with earlier ones."""

    files: tuple[StoredFile, ...]
    sharing: Mapping[str, Sharing]
    """By model."""
    held: tuple[StoredFile, ...]
    """Files of other packages, linked into this one."""

    @property
    def digests(self) -> dict[str, Digest]:
        return {file.path: file.digest for file in self.files}


def import_repository(store: TensorStore, folder: Path, uri: ArtifactUri, version: str, limits: StoreLimits) -> RepositoryReport:
    """Store the repository's files as they are, with a description of its models, under the artifact's address.

    Configs and ensembles are checked before the first byte is written; code is not run. Raises BadPackage, UnsupportedModel, DiskFull.
    """
    found = read_repository(folder, limits)
    environments = {
        name: environment_file(model.folder, model.config.parameters.get(PARAMETER, "")) for name, model in found.models.items()
    }
    incoming = store.incoming_path(uri)  # not beside it, where no lock tells others that the files are in use
    incoming.mkdir(exist_ok=True)
    for left in incoming.glob("split-*"):  # by an import that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="split-", dir=incoming) as spare, store.writing() as writer:
        sources = _sources(folder, found, Path(spare), limits)
        before = store.catalog.disk_bytes()
        placed = _place(store, folder, sources, found)
        for path in filter(None, environments.values()):
            unpack_environment(path, placed.digests[str(path.relative_to(folder.resolve()))], store.packages, limits)
        units = (_with_encoder(writer, unit, found, placed) for unit in _units(folder, found, placed, environments))
        repository = Repository(found.entry, tuple(units))
        manifest = _manifest(writer, repository, placed, found.notes, store)
        store.packages.assemble(manifest.digest, (*placed.files, *placed.held))
        writer.commit(manifest, uri, version)
        with store.catalog.transaction() as sql:  # after the files have rows: what is found here must be there
            insert_file_tensors(sql, (row for sharing in placed.sharing.values() for row in sharing.new))
        return RepositoryReport(manifest, store.catalog.disk_bytes() - before)


def _files(folder: Path, limits: StoreLimits) -> Iterator[Path]:
    """Every file but hidden ones and what Python compiled. A link may not lead out of the folder."""
    top, count = folder.resolve(), 0
    for path in sorted(folder.rglob("*")):
        if is_left_out(path.relative_to(folder).parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(top):
            raise BadPackage(f"{path.relative_to(folder)} is a link that leads out of the repository: pack the file itself")
        count += 1
        if count > limits.max_files:
            raise BadPackage(f"the repository holds more than {limits.max_files} files, the limit for one model")
        yield path


def _sources(folder: Path, found: FoundRepository, spare: Path, limits: StoreLimits) -> dict[Path, Path]:
    """Where each file of the package is read: in the artifact, or beside it, where weights were taken out of an ONNX graph."""
    sources = {path.relative_to(folder): path for path in _files(folder, limits)}
    for model in found.models.values():
        if model.mapped:
            sources = _without_checkpoints(sources, model, folder) | _written(model, folder, spare)
        if model.config.backend != "onnxruntime":
            continue
        for version in model.versions:
            place = (model.folder / str(version)).relative_to(folder)
            into = spare / place
            into.mkdir(parents=True)
            if (parts := split_weights(folder / place / model.config.file, into)) is not None:
                sources |= {place / part.name: part for part in parts}
    return sources


def _without_checkpoints(sources: Mapping[Path, Path], model: FoundModel, folder: Path) -> dict[Path, Path]:
    """What lies beside the versions of a mapped model stays, its data for warm-ups too."""
    own = model.folder.relative_to(folder)
    return {
        place: path
        for place, path in sources.items()
        if not (place.is_relative_to(own) and len(parts := place.relative_to(own).parts) > 1 and parts[0].isdigit())
    }


def _written(model: FoundModel, folder: Path, spare: Path) -> dict[Path, Path]:
    """Instead of a mapped model's checkpoints: the graph and the tokenizer that the engine reads."""
    sources = {}
    for version, found in model.mapped.items():
        place = (model.folder / str(version)).relative_to(folder)
        (spare / place).mkdir(parents=True)
        for name, content in ((GRAPH, found.parts.graph), (TOKENIZER, found.tokenizer)):
            (spare / place / name).write_bytes(content)
            sources[place / name] = spare / place / name
    return sources


def _place(store: TensorStore, folder: Path, sources: Mapping[Path, Path], found: FoundRepository) -> _Placed:
    files, taken = [], set[Digest]()
    sharing = {name: Sharing(taken) for name in found.models}
    for relative, path in sorted(sources.items()):
        file = store.packages.add(path, str(relative))
        files.append(file)
        owner = next((model for model in found.models.values() if (folder / relative).is_relative_to(model.folder)), None)
        if owner is not None and path.suffix == _WEIGHTS:
            inside = (folder / relative).relative_to(owner.folder)
            sharing[owner.config.name].add(path, file, str(inside), store.catalog)
    held = []
    for name, model in found.models.items():
        for digest in sorted(sharing[name].held):
            place = Path(model.folder.relative_to(folder), SHARED, f"{digest}{_WEIGHTS}")
            held.append(StoredFile(str(place), digest, store.packages.file_path(digest).stat().st_size))
    return _Placed(tuple(files), sharing, tuple(held))


def _units(folder: Path, found: FoundRepository, placed: _Placed, environments: Mapping[str, Path | None]) -> Iterator[Unit]:
    for name, model in found.models.items():
        archive = environments[name]
        environment = None if archive is None else placed.digests[str(archive.relative_to(folder.resolve()))]
        for version in model.versions:
            yield _unit(folder, model, version, environment, placed.sharing[name].shared())


def _unit(
    folder: Path, model: FoundModel, version: int, environment: Digest | None, shared: Mapping[str, Mapping[str, SharedTensor]]
) -> Unit:
    place = model.folder / str(version)
    return Unit(
        model=model.config.name,
        version=version,
        folder=str(model.folder.relative_to(folder)),
        config=model.json,
        code=code_digest(model.folder, version, model.config.backend, environment),
        imports=imported_packages(model.folder, version, model.config.backend),
        environment=environment,
        weight_bytes=sum(path.stat().st_size for path in place.rglob("*") if path.is_file()),
        is_mapping=model.config.backend in {"onnxruntime", MAPPED} or is_mapping(model.folder, version),
        shared=shared,
    )


def _with_encoder(writer: StoreWriter, unit: Unit, found: FoundRepository, placed: _Placed) -> Unit:
    """A mapped model's tensors go where those of all encoders are, so that it shares them with every other."""
    mapped = found.models[unit.model].mapped.get(unit.version)
    if mapped is None:
        return unit
    graph, tokenizer = (placed.digests[str(Path(unit.folder, str(unit.version), name))] for name in (GRAPH, TOKENIZER))
    return replace(unit, encoder=manifest_of(mapped.parts, graph, tokenizer, stored_tensors(writer, mapped.parts)))


def _manifest(writer: StoreWriter, repository: Repository, placed: _Placed, notes: tuple[str, ...], store: TensorStore) -> ModelManifest:
    description = writer.add_blob("repository", to_json(repository))
    files = (*(_package_file(file, placed, store) for file in placed.files), *(_held_file(file, store) for file in placed.held))
    return ModelManifest(
        digest=_identity(placed.files, repository),
        family="triton",
        graph=description,
        tokenizer=description,
        tensors=_tensors(repository),
        max_tokens=0,
        width=0,
        is_lowercased=False,
        workspace_bytes=0,
        notes=(*notes, *(note for unit in repository.units if unit.encoder for note in _notes(unit, unit.encoder))),
        backend="triton",
        files=files,
    )


def _package_file(file: StoredFile, placed: _Placed, store: TensorStore) -> PackageFile:
    """Of weights, what later packages can find in this file is what is mapped of it."""
    known = store.catalog.tensor_bytes_in(file.digest)
    new = sum(row[3] for sharing in placed.sharing.values() for row in sharing.new if row[1] == file.digest)
    return PackageFile(file.path, file.digest, file.size_bytes, known + new if file.path.endswith(_WEIGHTS) else 0)


def _held_file(file: StoredFile, store: TensorStore) -> PackageFile:
    return PackageFile(file.path, file.digest, file.size_bytes, store.catalog.tensor_bytes_in(file.digest))


def _tensors(repository: Repository) -> tuple[TensorSpec, ...]:
    """Of all mapped models: what the package holds on to in the store."""
    named = ((f"{unit.model}/{unit.version}", unit.encoder.tensors) for unit in repository.units if unit.encoder is not None)
    return tuple(replace(tensor, name=f"{place}/{tensor.name}") for place, tensors in named for tensor in tensors)


def _notes(unit: Unit, encoder: ModelManifest) -> Iterator[str]:
    return (f"model '{unit.model}', version {unit.version}: {note}" for note in encoder.notes)


def _identity(files: tuple[StoredFile, ...], repository: Repository) -> ModelDigest:
    """sha256 over every file by path, and every checkpoint: whatever is in the repository may decide the answer."""
    encoders = [[unit.model, unit.version, unit.encoder.digest] for unit in repository.units if unit.encoder is not None]
    parts: list[object] = ["triton", *([file.path, file.digest] for file in files)]
    return ModelDigest(hashlib.sha256(orjson.dumps([*parts, {"encoders": encoders}] if encoders else parts)).hexdigest())
