"""Token classification: for each piece of each text its best label, the score, and the characters that it stands for.

Texts have different numbers of tokens, so the answer is one row per token, in order, and `text_index` says whose it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatshare.core import interface
from flatshare.core.call import InferCall
from flatshare.core.signature import Signature
from flatshare.core.spec import ModelManifest
from flatshare.core.tensor import BYTES, Tensor, text_tensor
from flatshare.instance.backends.encoder import Piece, Row, TextEncoder
from flatshare.instance.backends.tasks import base
from flatshare.instance.backends.tasks.base import Prepared
from flatshare.instance.backends.tasks.classification import chosen_activation, label_array
from flatshare.instance.backends.tasks.scores import scores

_PARAMETERS = ("activation",)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The tokens that the answer speaks of; from token ids, all of them, and nobody knows their characters."""

    by_row: tuple[tuple[Piece, ...], ...]
    has_offsets: bool


class TokenClassification:
    """One model's texts → labelled pieces."""

    __slots__ = ("_encoder", "_labels", "_manifest")

    def __init__(self, manifest: ModelManifest, encoder: TextEncoder) -> None:
        self._manifest = manifest
        self._encoder = encoder
        self._labels = label_array(manifest.labels)

    @property
    def signature(self) -> Signature:
        return interface.token_classification(len(self._labels))

    def prepare(self, call: InferCall) -> Prepared:
        base.require_parameters(call, _PARAMETERS)
        chosen_activation(call, self._manifest)
        if base.IDS in call.inputs:
            rows = base.text_rows(call, self._encoder, self._manifest)
            return Prepared(rows, _Pieces(tuple(self._all_pieces(row) for row in rows), has_offsets=False))
        pieced = self._encoder.encode_pieces(base.texts_of(call, base.TEXT), self._manifest.max_tokens)
        return Prepared([row.row for row in pieced], _Pieces(tuple(row.pieces for row in pieced), has_offsets=True))

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:
        pieces: _Pieces = prepared.notes
        flat = [piece for row in pieces.by_row for piece in row]
        whose = np.repeat(np.arange(len(pieces.by_row)), [len(row) for row in pieces.by_row])
        spoken_of = [logits[[piece.position for piece in row]] for logits, row in zip(outputs, pieces.by_row, strict=True)]
        logits = np.concatenate(spoken_of)
        found = scores(logits, chosen_activation(call, self._manifest))
        best = found.argmax(axis=1)
        tensors = [
            Tensor("label", BYTES, self._labels[best]),
            Tensor.of("score", np.take_along_axis(found, best[:, None], axis=1)[:, 0]),
            text_tensor("piece", [piece.token for piece in flat]),
            Tensor.of("text_index", whose.astype(np.int64)),
        ]
        if pieces.has_offsets:
            tensors += [
                Tensor.of("begin", np.array([piece.begin for piece in flat], np.int64)),
                Tensor.of("end", np.array([piece.end for piece in flat], np.int64)),
            ]
        return (*tensors, Tensor.of("logits", logits))

    def _all_pieces(self, row: Row) -> tuple[Piece, ...]:
        return tuple(Piece(position, self._encoder.token(int(token)), 0, 0) for position, token in enumerate(row.ids))
