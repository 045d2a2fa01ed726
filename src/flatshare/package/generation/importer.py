"""From a generating model's folder to an immutable model in the tensor store."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import orjson

from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.core.spec import ModelManifest, TensorSpec
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.generation.checkpoint import LLAMA_TYPES, T5_TYPES, GenerationCheckpoint
from flatshare.package.generation.compact import compact_source
from flatshare.package.generation.llama import read_llama
from flatshare.package.generation.t5 import read_t5
from flatshare.package.tensor_source import Source, source_of, stored
from flatshare.package.weight_files import read_weights
from flatshare.package.weights import FLOATS
from flatshare.store.tensors import StoreWriter, TensorStore

BACKEND = "generate"


def is_generating(path: Path, limits: StoreLimits) -> bool:
    """Whether the folder holds a model that writes: by config.json, or by a GGUF file if that is all there is."""
    folder = Folder(path, limits)
    if not folder.has("config.json"):
        return bool(_gguf_files(path))
    config = folder.required_json("config.json")
    kind, classes = config.get("model_type"), config.get("architectures")
    is_classifier = isinstance(classes, list) and any(str(name).endswith(("Classification", "EncoderModel")) for name in classes)
    return isinstance(kind, str) and kind in {*T5_TYPES, *LLAMA_TYPES} and not is_classifier


def import_generating(store: TensorStore, path: Path, uri: ArtifactUri, version: str, limits: StoreLimits) -> tuple[ModelManifest, int]:
    """Store tensors, graphs and tokenizer, and remember that `uri` at `version` is this model: the manifest, and bytes that are new.

    Everything is checked before the first byte is written. Raises BadPackage or UnsupportedModel with what is wrong, DiskFull.
    """
    checkpoint = read_generating(path, limits)
    for wanted in checkpoint.graphs.weights:
        made = compact_source(checkpoint.sources, wanted.name)
        if made is not None:
            checkpoint.sources[wanted.name] = made
    found = [(wanted, checkpoint.source(wanted)) for wanted in checkpoint.graphs.weights]
    with store.writing() as writer:
        tensors = tuple(stored(writer, wanted.name, source) for wanted, source in found)
        manifest = _manifest(writer, checkpoint, tensors, _conversions(source for _, source in found))
        writer.commit(manifest, uri, version)
        return manifest, writer.new_bytes


def read_generating(path: Path, limits: StoreLimits) -> GenerationCheckpoint:
    folder = Folder(path, limits)
    if not folder.has("config.json"):
        files = _gguf_files(path)
        if len(files) != 1:
            raise BadPackage(f"{len(files)} GGUF files in one package: leave the one that is to be served")
        from flatshare.package.generation.gguf import read_gguf  # noqa: PLC0415  # 4 MB of modules that few imports need

        return read_gguf(files[0], folder)
    config = Config(folder.required_json("config.json"))
    tensors = read_weights(folder, folder, ()).all()
    sources = {name: source_of(found) for name, found in tensors.items()}
    return read_t5(folder, config, sources) if config.get("model_type") in T5_TYPES else read_llama(folder, config, sources)


def _gguf_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix == ".gguf" and file.is_file())


def _manifest(
    writer: StoreWriter, checkpoint: GenerationCheckpoint, tensors: tuple[TensorSpec, ...], notes: tuple[str, ...]
) -> ModelManifest:
    manifest = ModelManifest(
        digest=ModelDigest(""),
        family=checkpoint.family,
        graph=writer.add_blob("graph", checkpoint.graphs.blob),
        tokenizer=writer.add_blob("tokenizer", checkpoint.tokenizer),
        tensors=tensors,
        max_tokens=checkpoint.spec.positions,
        width=0,
        is_lowercased=False,
        workspace_bytes=checkpoint.workspace_bytes,
        notes=checkpoint.notes + notes,
        backend=BACKEND,
        task=Task.GENERATION,
        vocabulary=checkpoint.spec.vocabulary,
        generation=checkpoint.spec,
    )
    return replace(manifest, digest=_identity(manifest))


def _identity(manifest: ModelManifest) -> ModelDigest:
    """sha256 over everything that decides the answer; notes and estimates do not."""
    spec = asdict(manifest.generation) if manifest.generation is not None else None
    parts = [manifest.family, manifest.graph, manifest.tokenizer, spec, [[tensor.name, tensor.digest] for tensor in manifest.tensors]]
    return ModelDigest(hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest())


def _conversions(sources: Iterable[Source]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for source in sources:
        if source.dtype in FLOATS - {"F32"}:
            counts[source.dtype] = counts.get(source.dtype, 0) + 1
    return tuple(f"{count} tensors of {dtype} were converted to F32" for dtype, count in sorted(counts.items()))
