"""Cross-encoder ranking: a score for a query with each of its passages, read together."""

from collections.abc import Sequence

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
from flatshare.instance.backends.tasks.classification import chosen_activation
from flatshare.instance.backends.tasks.scores import scores

_QUERY, _PASSAGES = interface.QUERY, interface.PASSAGES
_PARAMETERS = ("activation",)


class Ranking:
    """One model's query and passages → scores, in the order of the passages."""

    __slots__ = ("_encoder", "_manifest")

    def __init__(self, manifest: ModelManifest, encoder: TextEncoder) -> None:
        self._manifest = manifest
        self._encoder = encoder

    @property
    def signature(self) -> Signature:
        return interface.ranking()

    def prepare(self, call: InferCall) -> Prepared:
        base.require_parameters(call, _PARAMETERS)
        chosen_activation(call, self._manifest)
        return Prepared(self._rows(call))

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:  # noqa: ARG002  # the outputs have it all
        logits = np.stack(outputs)[:, 0]
        return Tensor.of("score", scores(logits, chosen_activation(call, self._manifest))), Tensor.of("logits", logits)

    def _rows(self, call: InferCall) -> list[Row]:
        if base.IDS in call.inputs:
            base.require_only_ids(call, _QUERY, _PASSAGES)
            return base.id_rows(call, self._manifest)
        if _QUERY not in call.inputs or _PASSAGES not in call.inputs:
            raise BadInput(f"a ranker takes '{_QUERY}', one text, and '{_PASSAGES}', at least one; or token ids of pairs as '{base.IDS}'")
        queries, passages = base.texts_of(call, _QUERY), base.texts_of(call, _PASSAGES)
        if len(queries) != 1:
            raise BadInput(f"{len(queries)} queries in one call: send one '{_QUERY}' with its '{_PASSAGES}'")
        return self._encoder.encode_pairs(queries * len(passages), passages, self._manifest.max_tokens)
