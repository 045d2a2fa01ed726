"""What every task does with a call: read texts or token ids into rows, within bounds, and say what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flatshare.core import interface
from flatshare.core.call import InferCall, Scalar
from flatshare.core.errors import BadInput
from flatshare.core.signature import Signature
from flatshare.core.spec import ModelManifest
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.encoder import Row, TextEncoder

MAX_TEXTS = 4096
TEXT, IDS, MASK, SEGMENTS = interface.TEXT, interface.IDS, interface.MASK, interface.SEGMENTS
_OF_PROTOCOLS = {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end"}
"""Parameters that v2 clients send whatever the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A call's rows of tokens, and what the task needs to know of them for the answer."""

    rows: Sequence[Row]
    notes: Any = None


class TextTask(Protocol):
    """One model's way from a call to an answer."""

    @property
    def signature(self) -> Signature: ...

    def prepare(self, call: InferCall) -> Prepared:
        """Raises BadInput."""

    def answer(self, call: InferCall, prepared: Prepared, outputs: Sequence[NDArray[np.float32]]) -> tuple[Tensor, ...]:
        """From the graph's output for each row, in the order of the rows."""


def text_rows(call: InferCall, encoder: TextEncoder, manifest: ModelManifest, *, before: str = "") -> list[Row]:
    """The rows of "text", or of "input_ids"; `before` is put before each text. Raises BadInput."""
    if IDS in call.inputs:
        _require_no(call, TEXT)
        return id_rows(call, manifest)
    texts = [before + text for text in texts_of(call, TEXT)]
    return encoder.encode([text.lower() for text in texts] if manifest.is_lowercased else texts, manifest.max_tokens)


def texts_of(call: InferCall, name: str) -> list[str]:
    """Raises BadInput unless there is at least one text, and no more than a call may have."""
    tensor = call.inputs.get(name)
    texts = [] if tensor is None else tensor.texts()
    if not texts:
        raise BadInput(f"no text: send texts as '{name}', or token ids as '{IDS}'")
    _check_count(len(texts))
    return texts


def id_rows(call: InferCall, manifest: ModelManifest) -> list[Row]:
    """The rows of "input_ids". "attention_mask" says how long each is, since nothing is padded here. Raises BadInput."""
    ids = call.inputs[IDS].data
    _check_count(len(ids))
    mask, segments = (_beside(call, name, ids) for name in (MASK, SEGMENTS))
    rows = [_id_row(index, line, mask, segments) for index, line in enumerate(ids)]
    for row in rows:
        if not 0 < len(row.ids) <= manifest.max_tokens:
            raise BadInput(f"a row of '{IDS}' has {len(row.ids)} tokens: this model takes 1 to {manifest.max_tokens}")
        if row.ids.min() < 0 or row.ids.max() >= manifest.vocabulary:
            raise BadInput(f"'{IDS}' holds a token outside of 0 to {manifest.vocabulary - 1}, this model's vocabulary")
    return rows


def _id_row(index: int, ids: NDArray[np.int64], mask: NDArray[np.int64] | None, segments: NDArray[np.int64] | None) -> Row:
    kept = slice(None) if mask is None else _span(mask[index])
    types = np.zeros_like(ids) if segments is None else segments[index]
    if types.size and not 0 <= types.min() <= types.max() <= 1:
        raise BadInput(f"'{SEGMENTS}' may hold 0 and 1")
    return Row(np.ascontiguousarray(ids[kept]), np.ascontiguousarray(types[kept]))


def _span(mask: NDArray[np.int64]) -> slice:
    """Where the text lies in a row that its sender has padded. Raises BadInput for a mask with holes."""
    places = np.flatnonzero(mask)
    if not len(places):
        raise BadInput(f"a row of '{MASK}' is all 0: there is nothing to run")
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 != len(places) or not np.isin(mask, (0, 1)).all():
        raise BadInput(f"'{MASK}' must be one stretch of 1 in each row, and 0 around it")
    return slice(first, last + 1)


def _beside(call: InferCall, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    tensor = call.inputs.get(name)
    if tensor is not None and tensor.shape != ids.shape:
        raise BadInput(f"'{name}' has shape {list(tensor.shape)}, '{IDS}' {list(ids.shape)}: they must be equal")
    return None if tensor is None else tensor.data


def _check_count(count: int) -> None:
    if not count:
        raise BadInput(f"'{IDS}' has no row: send at least one")
    if count > MAX_TEXTS:
        raise BadInput(f"{count} texts in one call: at most {MAX_TEXTS} are accepted, split the call")


def _require_no(call: InferCall, *names: str) -> None:
    for name in names:
        if name in call.inputs:
            raise BadInput(f"both '{name}' and '{IDS}' are given: send texts or token ids")


def require_only_ids(call: InferCall, *texts: str) -> None:
    """Raises BadInput if there are texts beside token ids."""
    _require_no(call, *texts)


def require_parameters(call: InferCall, known: Sequence[str]) -> None:
    """Raises BadInput for a parameter that means nothing to this model: a typo must not be a silent default."""
    unknown = [name for name in call.parameters if name not in known and name not in _OF_PROTOCOLS]
    if unknown:
        served = f"it takes {', '.join(known)}" if known else "it takes none"
        raise BadInput(f"the model has no parameter '{unknown[0][:64]}': {served}")


def text_parameter(parameters: Mapping[str, Scalar], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"parameter '{name}' must be a text")
    return value


def count_parameter(parameters: Mapping[str, Scalar], name: str, most: int) -> int | None:
    """An integer from 1 to `most`."""
    value = parameters.get(name)
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise BadInput(f"parameter '{name}' must be an integer from 1 to {most}, not {repr(value)[:64]}")
    return value
