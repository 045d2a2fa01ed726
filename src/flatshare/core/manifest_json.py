"""A model's manifest as JSON: how the catalog keeps it, and how a package keeps those of the checkpoints in it."""

import sys
from dataclasses import asdict
from typing import Any

import orjson

from flatshare.core.ids import TensorDigest
from flatshare.core.signature import Task
from flatshare.core.spec import GenerationSpec, ModelManifest, PackageFile, TensorSpec


def to_json(manifest: ModelManifest) -> bytes:
    return orjson.dumps(asdict(manifest))


def from_json(text: bytes) -> ModelManifest:
    return from_fields(orjson.loads(text))


def from_fields(fields: dict[str, Any]) -> ModelManifest:
    """Takes the fields apart. What older versions did not write has its default."""
    tensors = tuple(_tensor(t) for t in fields.pop("tensors"))
    notes, labels = tuple(fields.pop("notes")), tuple(fields.pop("labels", ()))
    files = tuple(PackageFile(**file) for file in fields.pop("files", ()))
    task, generation = Task(fields.pop("task", Task.EMBEDDING)), _generation(fields.pop("generation", None))
    return ModelManifest(tensors=tensors, notes=notes, labels=labels, task=task, generation=generation, files=files, **fields)


def _generation(fields: dict[str, Any] | None) -> GenerationSpec | None:
    if fields is None:
        return None
    tokens = tuple((name, token) for name, token in fields.pop("template_tokens"))
    return GenerationSpec(ends=tuple(fields.pop("ends")), template_tokens=tokens, **fields)


def _tensor(fields: dict[str, Any]) -> TensorSpec:
    """Interned, since many models in memory have names and tensors in common."""
    digest = TensorDigest(sys.intern(fields["digest"]))
    return TensorSpec(sys.intern(fields["name"]), digest, tuple(fields["shape"]), fields["size_bytes"], fields.get("dtype", "F32"))
