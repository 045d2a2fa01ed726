"""Step 6b: several calls of one model as one, and its answer as several. Nothing is padded: the engine groups texts of equal length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flatshare.core.call import InferCall, InferResult, Scalar
from flatshare.core.signature import Signature, Task
from flatshare.core.tensor import Tensor

_BY_ROW = {Task.EMBEDDING, Task.CLASSIFICATION}
"""Tasks whose answer to a text does not depend on the other texts of the call, one row for each."""
_TEXT = "text"


@dataclass(frozen=True, slots=True)
class Likeness:
    """Calls with equal ones of a model may be run together."""

    parameters: tuple[tuple[str, Scalar], ...]
    wanted: tuple[str, ...]


def likeness(signature: Signature, call: InferCall) -> Likeness | None:
    """None if the call has to be run alone."""
    is_plain = len(call.inputs) == 1 and _TEXT in call.inputs and call.inputs[_TEXT].data.ndim == 1
    if signature.task not in _BY_ROW or not is_plain:
        return None
    return Likeness(tuple(sorted(call.parameters.items())), call.wanted)


def merged(calls: Sequence[InferCall]) -> InferCall:
    texts = Tensor(_TEXT, "BYTES", np.concatenate([call.inputs[_TEXT].data for call in calls]))
    return replace(calls[0], inputs={_TEXT: texts}, id=None)


def split(result: InferResult, counts: Sequence[int]) -> list[InferResult]:
    """Each call's rows and remarks. Raises ValueError if the model did not answer with a row for each text."""
    total = sum(counts)
    if any(tensor.data.ndim == 0 or len(tensor.data) != total for tensor in result.outputs):
        raise ValueError(f"an answer to {total} texts has outputs of {[tensor.data.shape for tensor in result.outputs]}")
    parts, begin = [], 0
    for count in counts:
        rows = slice(begin, begin + count)
        outputs = tuple(replace(tensor, data=tensor.data[rows]) for tensor in result.outputs)
        remarks = {name: _remark(name, value, rows, total) for name, value in result.parameters.items()}
        parts.append(InferResult(outputs, remarks))
        begin += count
    return parts


def _remark(name: str, value: Scalar | tuple[int, ...], rows: slice, total: int) -> Scalar | tuple[int, ...]:
    if not isinstance(value, tuple):
        return value
    if name == "truncated":  # indices of texts
        return tuple(index - rows.start for index in value if rows.start <= index < rows.stop)
    return value[rows] if len(value) == total else value
