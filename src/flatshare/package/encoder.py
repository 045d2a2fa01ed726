"""An encoder between its checkpoint and the tensor store: everything read and checked, nothing written."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from flatshare.core.errors import BadPackage
from flatshare.core.ids import Digest, ModelDigest
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import TOKENS_PER_RUN, ModelManifest, TensorSpec
from flatshare.package.checkpoint import Checkpoint, read_checkpoint
from flatshare.package.folder import Folder
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.builder import WeightInput
from flatshare.package.graphs.heads import SentenceHead, SequenceHead, generated_graph
from flatshare.package.purpose import Purpose
from flatshare.package.tensor_source import Source, source_of, stored
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import keeps_end, tokenizer_json
from flatshare.package.weight_files import FoundTensor, Weights, read_weights
from flatshare.package.weights import FLOATS
from flatshare.store.tensors import StoreWriter

_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True, slots=True)
class PartWeight:
    """A tensor by the graph's name for it."""

    name: str
    source: Source


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """A model on its way into the store, whichever way its graph was found."""

    folder: Folder
    family: str
    purpose: Purpose
    graph: bytes
    weights: tuple[PartWeight, ...]
    vocabulary: int
    width: int
    max_tokens: int
    workspace_bytes: int
    notes: tuple[str, ...]


def read_encoder(folder: Path, limits: StoreLimits) -> EncoderParts:
    """By a generated graph. Raises BadPackage for what is missing or contradictory, UnsupportedModel for what no such graph covers."""
    return generated(read_checkpoint(folder, limits))


def generated(checkpoint: Checkpoint) -> EncoderParts:
    purpose, trunk = checkpoint.purpose, checkpoint.trunk
    head = purpose.head
    graph = generated_graph(trunk, head, has_pairs=isinstance(head, SequenceHead))
    weights = read_weights(checkpoint.folder, checkpoint.top, purpose.sentence.weight_folders)
    found = [(wanted, _find(weights, wanted, trunk.prefix)) for wanted in graph.weights]
    return EncoderParts(
        folder=checkpoint.folder,
        family=trunk.family,
        purpose=purpose,
        graph=graph.model,
        weights=tuple(PartWeight(wanted.name, source_of(tensor)) for wanted, tensor in found),
        vocabulary=trunk.vocabulary,
        width=head.width(trunk.hidden) if isinstance(head, SentenceHead) else head.labels,
        max_tokens=checkpoint.max_tokens,
        workspace_bytes=workspace_bytes(trunk, checkpoint.max_tokens),
        notes=purpose.notes + _conversions(tensor for _, tensor in found),
    )


def tokenizer_of(parts: EncoderParts) -> bytes:
    """The one file that the engine reads, whatever files the checkpoint has. Raises BadPackage."""
    return canonical_tokenizer(
        tokenizer_json(parts.folder, parts.family),
        vocabulary=parts.vocabulary,
        max_tokens=parts.max_tokens,
        has_pairs=isinstance(parts.purpose.head, SequenceHead),
        keeps_end=keeps_end(parts.folder),
    )


def stored_tensors(writer: StoreWriter, parts: EncoderParts) -> tuple[TensorSpec, ...]:
    return tuple(stored(writer, weight.name, weight.source) for weight in parts.weights)


def manifest_of(parts: EncoderParts, graph: Digest, tokenizer: Digest, tensors: tuple[TensorSpec, ...]) -> ModelManifest:
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
        is_prompt_pooled=not isinstance(purpose.head, SentenceHead) or purpose.head.is_prompt_pooled,
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
