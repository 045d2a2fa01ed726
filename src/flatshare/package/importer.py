"""From a checkpoint directory to an immutable model in the tensor store."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import TOKENS_PER_RUN, ModelManifest, TensorSpec
from flatshare.package.checkpoint import Checkpoint, read_checkpoint
from flatshare.package.generation.importer import import_generating, is_generating
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.builder import GeneratedGraph, WeightInput
from flatshare.package.graphs.heads import SentenceHead, SequenceHead, generated_graph
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import tokenizer_json
from flatshare.package.weight_files import FoundTensor, Weights, read_weights
from flatshare.package.weights import FLOATS
from flatshare.store.tensors import StoreWriter, TensorStore

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
    purpose, trunk = checkpoint.purpose, checkpoint.trunk
    has_pairs = isinstance(purpose.head, SequenceHead)
    graph = generated_graph(trunk, purpose.head, has_pairs=has_pairs)
    weights = read_weights(checkpoint.folder, checkpoint.top, purpose.sentence.weight_folders)
    found = [(wanted, _find(weights, wanted, trunk.prefix)) for wanted in graph.weights]
    content = tokenizer_json(checkpoint.folder, trunk.family)
    tokenizer = canonical_tokenizer(content, vocabulary=trunk.vocabulary, max_tokens=checkpoint.max_tokens, has_pairs=has_pairs)
    with store.writing() as writer:
        tensors = tuple(writer.add_tensor(wanted.name, tensor.float32()) for wanted, tensor in found)
        notes = purpose.notes + _conversions(tensor for _, tensor in found)
        manifest = _manifest(writer, checkpoint, graph, tokenizer, tensors, notes)
        writer.commit(manifest, uri, version)
        return ImportReport(manifest, writer.new_bytes)


def _find(weights: Weights, wanted: WeightInput, prefix: str) -> FoundTensor:
    """The checkpoint's tensor under today's name or an older one. Raises BadPackage if it is missing or of another shape."""
    found = weights.find(_spellings(wanted.name, prefix))
    if found is None:
        raise BadPackage(f"the weights lack the tensor '{wanted.name}', which config.json asks for")
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


def _manifest(
    writer: StoreWriter,
    checkpoint: Checkpoint,
    graph: GeneratedGraph,
    tokenizer: bytes,
    tensors: tuple[TensorSpec, ...],
    notes: tuple[str, ...],
) -> ModelManifest:
    purpose, trunk = checkpoint.purpose, checkpoint.trunk
    sentence, head = purpose.sentence, purpose.head
    full_width = head.width(trunk.hidden) if isinstance(head, SentenceHead) else head.labels
    manifest = ModelManifest(
        digest=ModelDigest(""),
        family=trunk.family,
        graph=writer.add_blob("graph", graph.model),
        tokenizer=writer.add_blob("tokenizer", tokenizer),
        tensors=tensors,
        max_tokens=checkpoint.max_tokens,
        width=sentence.dimensions or full_width,
        is_lowercased=sentence.is_lowercased,
        workspace_bytes=workspace_bytes(trunk, checkpoint.max_tokens),
        notes=notes,
        task=purpose.task,
        vocabulary=trunk.vocabulary,
        labels=purpose.labels,
        activation=purpose.activation,
        prompts=sentence.prompts,
        default_prompt=sentence.default_prompt,
        is_normalized=isinstance(head, SentenceHead) and head.is_normalized,
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
