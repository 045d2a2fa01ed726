"""Sequence classification: labels with scores for each text, or for each pair of texts."""

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from flatshare.core import interface
from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Signature
from flatshare.core.spec import Activation, ModelManifest
from flatshare.core.tensor import BYTES, Tensor
from flatshare.instance.backends.encoder import Row, TextEncoder
from flatshare.instance.backends.tasks import base
from flatshare.instance.backends.tasks.base import Prepared
from flatshare.instance.backends.tasks.scores import scores

_PAIR = interface.TEXT_PAIR
_PARAMETERS = ("activation", "top_k")


class Classification:
    """One model's texts → labels, the best first."""

    __slots__ = ("_encoder", "_labels", "_manifest")

    def __init__(self, manifest: ModelManifest, encoder: TextEncoder) -> None:
        self._manifest = manifest
        self._encoder = encoder
        self._labels = label_array(manifest.labels)

    @property
    def signature(self) -> Signature:
        return interface.classification(len(self._labels))

    def prepare(self, call: InferCall) -> Prepared:
        base.require_parameters(call, _PARAMETERS)
        base.count_parameter(call.parameters, "top_k", len(self._labels))
        chosen_activation(call, self._manifest)
        return Prepared(self._pairs(call) if _PAIR in call.inputs else base.text_rows(call, self._encoder, self._manifest))

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:  # noqa: ARG002  # the outputs have it all
        logits = np.stack(outputs)
        found = scores(logits, chosen_activation(call, self._manifest))
        order = np.argsort(-found, axis=1, kind="stable")[:, : call.parameters.get("top_k")]
        best = np.take_along_axis(found, order, axis=1)
        return Tensor("label", BYTES, self._labels[order]), Tensor.of("score", best), Tensor.of("logits", logits)

    def _pairs(self, call: InferCall) -> list[Row]:
        if base.IDS in call.inputs:
            base.require_only_ids(call, _PAIR)
        firsts, seconds = base.texts_of(call, base.TEXT), base.texts_of(call, _PAIR)
        if len(firsts) != len(seconds):
            raise BadInput(f"{len(firsts)} texts and {len(seconds)} to pair them with: send one '{_PAIR}' for each 'text'")
        return self._encoder.encode_pairs(firsts, seconds, self._manifest.max_tokens)


def chosen_activation(call: InferCall, manifest: ModelManifest) -> Activation:
    """Raises BadInput for a name that is none."""
    name = base.text_parameter(call.parameters, "activation")
    if name is None:
        return manifest.activation
    if name not in get_args(Activation):
        raise BadInput(f"parameter 'activation' must be one of {', '.join(get_args(Activation))}, not {name[:64]!r}")
    return cast("Activation", name)


def label_array(labels: Sequence[str]) -> NDArray[np.object_]:
    array = np.empty(len(labels), object)
    array[:] = [label.encode() for label in labels]
    return array
