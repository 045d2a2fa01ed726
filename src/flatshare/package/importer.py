"""From a checkpoint directory to an immutable model in the tensor store."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.ids import ArtifactUri, Digest, ModelDigest
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import TOKENS_PER_RUN, ModelManifest, TensorSpec
from flatshare.package.checkpoint import Checkpoint, read_checkpoint
from flatshare.package.folder import Folder
from flatshare.package.foreign import ONNX_PLACES, ForeignModel, read_foreign
from flatshare.package.generation.importer import import_generating, is_generating
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.builder import WeightInput
from flatshare.package.graphs.heads import SentenceHead, SequenceHead, generated_graph
from flatshare.package.packed import LISTING
from flatshare.package.purpose import Purpose
from flatshare.package.tensor_source import Source, source_of, stored
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import keeps_end, tokenizer_json
from flatshare.package.triton.importing import import_repository
from flatshare.package.triton.repository import is_repository
from flatshare.package.weight_files import FoundTensor, Weights, has_weights, read_weights
from flatshare.package.weights import FLOATS
from flatshare.store.tensors import TensorStore

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
    if is_repository(folder):
        report = import_repository(store, folder, uri, version, limits)
        return ImportReport(report.manifest, report.new_bytes)
    if is_generating(folder, limits):
        return ImportReport(*import_generating(store, folder, uri, version, limits))
    parts = _parts(folder, limits)
    purpose = parts.purpose
    has_pairs = isinstance(purpose.head, SequenceHead)
    content = tokenizer_json(parts.folder, parts.family)
    tokenizer = canonical_tokenizer(
        content, vocabulary=parts.vocabulary, max_tokens=parts.max_tokens, has_pairs=has_pairs, keeps_end=keeps_end(parts.folder)
    )
    with store.writing() as writer:
        tensors = tuple(stored(writer, weight.name, weight.source) for weight in parts.weights)
        manifest = _manifest(parts, writer.add_blob("graph", parts.graph), writer.add_blob("tokenizer", tokenizer), tensors)
        writer.commit(manifest, uri, version)
        return ImportReport(manifest, writer.new_bytes)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor by the graph's name for it."""

    name: str
    source: Source


@dataclass(frozen=True, slots=True)
class _Parts:
    """A model on its way into the store, whichever way its graph was found."""

    folder: Folder
    family: str
    purpose: Purpose
    graph: bytes
    weights: tuple[_Weight, ...]
    vocabulary: int
    width: int
    max_tokens: int
    workspace_bytes: int
    notes: tuple[str, ...]


def _parts(folder: Path, limits: StoreLimits) -> _Parts:
    """By a generated graph if there is one for the family, else by an ONNX file, else by torch's export."""
    try:
        checkpoint = read_checkpoint(folder, limits)
    except UnsupportedModel as reason:
        if any(folder.rglob(f"*{LISTING}")):
            raise UnsupportedModel(f"{reason}; packs hold built-in architectures only: package it with --form folder") from reason
        return _foreign(read_foreign(folder, limits, reason))
    if not has_weights(checkpoint.folder) and any(checkpoint.folder.has(place) for place in ONNX_PLACES):
        return _foreign(read_foreign(folder, limits, None))
    return _generated(checkpoint)


def _generated(checkpoint: Checkpoint) -> _Parts:
    purpose, trunk = checkpoint.purpose, checkpoint.trunk
    head = purpose.head
    graph = generated_graph(trunk, head, has_pairs=isinstance(head, SequenceHead))
    weights = read_weights(checkpoint.folder, checkpoint.top, purpose.sentence.weight_folders)
    found = [(wanted, _find(weights, wanted, trunk.prefix)) for wanted in graph.weights]
    return _Parts(
        folder=checkpoint.folder,
        family=trunk.family,
        purpose=purpose,
        graph=graph.model,
        weights=tuple(_Weight(wanted.name, source_of(tensor)) for wanted, tensor in found),
        vocabulary=trunk.vocabulary,
        width=head.width(trunk.hidden) if isinstance(head, SentenceHead) else head.labels,
        max_tokens=checkpoint.max_tokens,
        workspace_bytes=workspace_bytes(trunk, checkpoint.max_tokens),
        notes=purpose.notes + _conversions(tensor for _, tensor in found),
    )


def _foreign(model: ForeignModel) -> _Parts:
    return _Parts(
        folder=model.folder,
        family=model.family,
        purpose=model.purpose,
        graph=model.split.model,
        weights=tuple(
            _Weight(name, Source(array.shape, "F32", partial(_same, array))) for name, array in sorted(model.split.weights.items())
        ),
        vocabulary=model.vocabulary,
        width=model.width,
        max_tokens=model.max_tokens,
        workspace_bytes=model.workspace_bytes,
        notes=model.purpose.notes + model.notes,
    )


def _same(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array


def _find(weights: Weights, wanted: WeightInput, prefix: str) -> FoundTensor:
    """The checkpoint's tensor under today's name or an older one. Raises BadPackage if it is missing or of another shape."""
    found = weights.find(_spellings(wanted.name, prefix))
    if found is None:
        raise BadPackage(f"the checkpoint lacks the tensor '{wanted.name}', which config.json asks for")
    entry = found.entry
    if entry.shape != wanted.shape:
        raise BadPackage(
            f"tensor '{entry.name}' has shape {list(entry.shape)}, config.json asks for {list(wanted.shape)}: "
            f"weights and config do not belong together"
        )
    if entry.dtype not in FLOATS:
        raise BadPackage(f"tensor '{entry.name}' is of type {entry.dtype}: weights must be F32, F16, BF16 or F64")
    return found


def _spellings(name: str, family_prefix: str) -> Iterable[str]:
    for prefix in ("", family_prefix):
        yield prefix + name
        for new, old in _OLD_NAMES.items():
            if name.endswith(new):
                yield prefix + name.removesuffix(new) + old


def _conversions(tensors: Iterable[FoundTensor]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.entry.dtype != "F32":
            counts[tensor.entry.dtype] = counts.get(tensor.entry.dtype, 0) + 1
    return tuple(f"{count} tensors of {dtype} were converted to F32" for dtype, count in sorted(counts.items()))


def _manifest(parts: _Parts, graph: Digest, tokenizer: Digest, tensors: tuple[TensorSpec, ...]) -> ModelManifest:
    purpose = parts.purpose
    sentence = purpose.sentence
    manifest = ModelManifest(
        digest=ModelDigest(""),
        family=parts.family,
        graph=graph,
        tokenizer=tokenizer,
        tensors=tensors,
        max_tokens=parts.max_tokens,
        width=sentence.dimensions or parts.width,
        is_lowercased=sentence.is_lowercased,
        workspace_bytes=parts.workspace_bytes,
        notes=parts.notes,
        task=purpose.task,
        vocabulary=parts.vocabulary,
        labels=purpose.labels,
        activation=purpose.activation,
        prompts=sentence.prompts,
        default_prompt=sentence.default_prompt,
        is_normalized=isinstance(purpose.head, SentenceHead) and purpose.head.is_normalized,
    )
    return replace(manifest, digest=_identity(manifest))


def _identity(manifest: ModelManifest) -> ModelDigest:
    """sha256 over everything that decides the answer; notes and estimates do not."""
    parts = [manifest.family, manifest.graph, manifest.tokenizer, manifest.max_tokens, manifest.is_lowercased]
    parts += [manifest.task, manifest.width, manifest.labels, manifest.activation, dict(manifest.prompts), manifest.default_prompt]
    parts += [[tensor.name, tensor.digest] for tensor in manifest.tensors]
    return ModelDigest(hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest())


def workspace_bytes(trunk: Trunk, tokens: int) -> int:
    """Activations alive at once, in float32, with the allocator's slack: measured 19.5 MB for MiniLM-L6 at 512 tokens."""
    return int(1.5 * 4 * max(tokens, TOKENS_PER_RUN) * trunk.workspace_floats(tokens)) + 2**20
