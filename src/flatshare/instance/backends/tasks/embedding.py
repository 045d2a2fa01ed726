"""Sentence embedding: one vector per text, with prompts and Matryoshka dimensions as sentence-transformers has them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flatshare.core import interface
from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Signature
from flatshare.core.spec import ModelManifest
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.encoder import Row, TextEncoder
from flatshare.instance.backends.tasks import base
from flatshare.instance.backends.tasks.base import Prepared

_PARAMETERS = ("prompt_name", "prompt", "dimensions")


class Embedding:
    """One model's texts → vectors."""

    __slots__ = ("_encoder", "_manifest")

    def __init__(self, manifest: ModelManifest, encoder: TextEncoder) -> None:
        self._manifest = manifest
        self._encoder = encoder

    @property
    def signature(self) -> Signature:
        return interface.embedding(self._manifest.width)

    def prepare(self, call: InferCall) -> Prepared:
        base.require_parameters(call, _PARAMETERS)
        dimensions = base.count_parameter(call.parameters, "dimensions", self._manifest.width)
        prompt = chosen_prompt(call, self._manifest)
        rows = base.text_rows(call, self._encoder, self._manifest, before=prompt)
        if prompt and not self._manifest.is_prompt_pooled and base.IDS not in call.inputs:
            rows = self._without_prompt(rows, prompt)
        return Prepared(rows, dimensions or self._manifest.width)

    def _without_prompt(self, rows: Sequence[Row], prompt: str) -> list[Row]:
        before = prompt.lower() if self._manifest.is_lowercased else prompt
        count = self._encoder.prompt_tokens(before, self._manifest.max_tokens)
        return [replace(row, prompt_tokens=count) for row in rows]

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:  # noqa: ARG002  # the rows decide
        _require_something_left(prepared.rows, outputs)
        vectors = np.stack(outputs)
        if prepared.notes < vectors.shape[1]:
            vectors = np.ascontiguousarray(vectors[:, : prepared.notes])
            if self._manifest.is_normalized:
                vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        return (Tensor.of("embedding", vectors),)


def _require_something_left(rows: Sequence[Row], outputs: Sequence[NDArray[np.float32]]) -> None:
    """Raises BadInput for a text of which nothing is left without its prompt, if its pooling has no number for that."""
    for index, (row, vector) in enumerate(zip(rows, outputs, strict=True)):
        if row.prompt_tokens >= len(row.ids) and not np.isfinite(vector).all():
            raise BadInput(f"text {index} has no token beyond the prompt's, and this model does not pool those: send a longer text")


def chosen_prompt(call: InferCall, manifest: ModelManifest) -> str:
    """The text that goes before the caller's: its own, the one it names, or the model's default. Raises BadInput."""
    own, name = (base.text_parameter(call.parameters, parameter) for parameter in ("prompt", "prompt_name"))
    if own is not None and name is not None:
        raise BadInput("both 'prompt' and 'prompt_name' are given: send one of them")
    if own is not None:
        return own
    name = manifest.default_prompt if name is None else name
    if name is None:
        return ""
    if name not in manifest.prompts:
        raise BadInput(f"the model has no prompt '{name[:64]}': it has {', '.join(manifest.prompts) or 'none'}")
    return manifest.prompts[name]
