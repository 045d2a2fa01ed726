"""From a checkpoint directory to an immutable model in the tensor store."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import UnsupportedModel
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import ModelManifest
from flatshare.package.checkpoint import read_checkpoint
from flatshare.package.encoder import EncoderParts, PartWeight, generated, manifest_of, stored_tensors, tokenizer_of
from flatshare.package.foreign import ONNX_PLACES, ForeignModel, read_foreign
from flatshare.package.generation.importer import import_generating, is_generating
from flatshare.package.packed import LISTING
from flatshare.package.tensor_source import Source
from flatshare.package.triton.importing import import_repository
from flatshare.package.triton.repository import is_repository
from flatshare.package.weight_files import has_weights
from flatshare.store.tensors import TensorStore


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
    tokenizer = tokenizer_of(parts)
    with store.writing() as writer:
        tensors = stored_tensors(writer, parts)
        manifest = manifest_of(parts, writer.add_blob("graph", parts.graph), writer.add_blob("tokenizer", tokenizer), tensors)
        writer.commit(manifest, uri, version)
        return ImportReport(manifest, writer.new_bytes)


def _parts(folder: Path, limits: StoreLimits) -> EncoderParts:
    """By a generated graph if there is one for the family, else by an ONNX file, else by torch's export."""
    try:
        checkpoint = read_checkpoint(folder, limits)
    except UnsupportedModel as reason:
        if any(folder.rglob(f"*{LISTING}")):
            raise UnsupportedModel(f"{reason}; packs hold built-in architectures only: package it with --form folder") from reason
        return _foreign(read_foreign(folder, limits, reason))
    if not has_weights(checkpoint.folder) and any(checkpoint.folder.has(place) for place in ONNX_PLACES):
        return _foreign(read_foreign(folder, limits, None))
    return generated(checkpoint)


def _foreign(model: ForeignModel) -> EncoderParts:
    return EncoderParts(
        folder=model.folder,
        family=model.family,
        purpose=model.purpose,
        graph=model.split.model,
        weights=tuple(
            PartWeight(name, Source(array.shape, "F32", partial(_same, array))) for name, array in sorted(model.split.weights.items())
        ),
        vocabulary=model.vocabulary,
        width=model.width,
        max_tokens=model.max_tokens,
        workspace_bytes=model.workspace_bytes,
        notes=model.purpose.notes + model.notes,
    )


def _same(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array
