"""From a checkpoint directory to an immutable model in the tensor store."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import ModelManifest, TensorSpec
from flatshare.package.checkpoint import Checkpoint, read_checkpoint
from flatshare.package.generation.importer import import_generating, is_generating
from flatshare.package.graphs.bert import BertShape, GeneratedGraph, sentence_encoder
from flatshare.package.graphs.builder import WeightInput
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.weights import FLOATS, WeightEntry, WeightsFile
from flatshare.store.tensors import StoreWriter, TensorStore

_PREFIXES = ("", "bert.")
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    manifest: ModelManifest
    new_bytes: int
    """Bytes that no earlier model had brought."""


def import_checkpoint(store: TensorStore, folder: Path, uri: ArtifactUri, version: str, limits: StoreLimits) -> ImportReport:
    """Store the checkpoint's tensors, graph and tokenizer, and remember that `uri` at `version` is this model.

    Everything is checked before the first byte is written. Raises BadPackage or UnsupportedModel with what is wrong, DiskFull.
    """
    if is_generating(folder, limits):
        return ImportReport(*import_generating(store, folder, uri, version, limits))
    checkpoint = read_checkpoint(folder, limits)
    weights = WeightsFile(checkpoint.weights_path)
    graph = sentence_encoder(checkpoint.shape, checkpoint.head)
    found = [(wanted, _find(weights, wanted)) for wanted in graph.weights]
    tokenizer = canonical_tokenizer(
        checkpoint.tokenizer_path, limits, vocabulary=checkpoint.shape.vocabulary, max_tokens=checkpoint.max_tokens
    )
    with store.writing() as writer:
        tensors = tuple(writer.add_tensor(wanted.name, weights.float32(entry)) for wanted, entry in found)
        notes = checkpoint.notes + _conversions(entry for _, entry in found)
        manifest = _manifest(writer, checkpoint, graph, tokenizer, tensors, notes)
        writer.commit(manifest, uri, version)
        return ImportReport(manifest, writer.new_bytes)


def _find(weights: WeightsFile, wanted: WeightInput) -> WeightEntry:
    """The checkpoint's tensor under today's name or an older one. Raises BadPackage if it is missing or of another shape."""
    entry = next((weights.entries[name] for name in _spellings(wanted.name) if name in weights.entries), None)
    if entry is None:
        raise BadPackage(f"model.safetensors lacks the tensor '{wanted.name}', which config.json asks for")
    if entry.shape != wanted.shape:
        raise BadPackage(
            f"tensor '{entry.name}' has shape {list(entry.shape)}, config.json asks for {list(wanted.shape)}: "
            f"weights and config do not belong together"
        )
    if entry.dtype not in FLOATS:
        raise BadPackage(f"tensor '{entry.name}' is of type {entry.dtype}: weights must be F32, F16, BF16 or F64")
    return entry


def _spellings(name: str) -> Iterable[str]:
    for prefix in _PREFIXES:
        yield prefix + name
        for new, old in _OLD_NAMES.items():
            if name.endswith(new):
                yield prefix + name.removesuffix(new) + old


def _conversions(entries: Iterable[WeightEntry]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.dtype != "F32":
            counts[entry.dtype] = counts.get(entry.dtype, 0) + 1
    return tuple(f"{count} tensors of {dtype} were converted to F32" for dtype, count in sorted(counts.items()))


def _manifest(
    writer: StoreWriter,
    checkpoint: Checkpoint,
    graph: GeneratedGraph,
    tokenizer: bytes,
    tensors: tuple[TensorSpec, ...],
    notes: tuple[str, ...],
) -> ModelManifest:
    manifest = ModelManifest(
        digest=ModelDigest(""),
        family="bert",
        graph=writer.add_blob("graph", graph.model),
        tokenizer=writer.add_blob("tokenizer", tokenizer),
        tensors=tensors,
        max_tokens=checkpoint.max_tokens,
        width=checkpoint.shape.hidden * len(checkpoint.head.poolings),
        is_lowercased=checkpoint.is_lowercased,
        workspace_bytes=_workspace_bytes(checkpoint.shape, checkpoint.max_tokens),
        notes=notes,
    )
    return replace(manifest, digest=_identity(manifest))


def _identity(manifest: ModelManifest) -> ModelDigest:
    """sha256 over everything that decides the answer; notes and estimates do not."""
    parts = [manifest.family, manifest.graph, manifest.tokenizer, manifest.max_tokens, manifest.is_lowercased]
    parts += [[tensor.name, tensor.digest] for tensor in manifest.tensors]
    return ModelDigest(hashlib.sha256(orjson.dumps(parts)).hexdigest())


def _workspace_bytes(shape: BertShape, tokens: int) -> int:
    """Activations alive at once, in float32, with the allocator's slack: measured 19.5 MB for MiniLM-L6 at 512 tokens."""
    return int(1.5 * 4 * tokens * (8 * shape.hidden + 2 * shape.intermediate)) + 2**20
