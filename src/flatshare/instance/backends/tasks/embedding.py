"""Sentence embedding: one vector per text, with prompts and Matryoshka dimensions as sentence-transformers has them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flatshare.core import interface
from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Signature
from flatshare.core.spec import ModelManifest
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.encoder import TextEncoder
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
        rows = base.text_rows(call, self._encoder, self._manifest, before=chosen_prompt(call, self._manifest))
        return Prepared(rows, dimensions or self._manifest.width)

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:  # noqa: ARG002  # the rows decide
        vectors = np.stack(outputs)
        if prepared.notes < vectors.shape[1]:
            vectors = np.ascontiguousarray(vectors[:, : prepared.notes])
            if self._manifest.is_normalized:
                vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        return (Tensor.of("embedding", vectors),)


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
