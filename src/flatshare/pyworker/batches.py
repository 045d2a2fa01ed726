"""Requests that were gathered for one run, as one: rows below each other on the way in, taken apart on the way out."""

from collections.abc import Callable, Sequence

import numpy as np

from flatshare.pyworker.frames import NamedArray
from flatshare.pyworker.requests import InferenceRequest, InferenceResponse
from flatshare.pyworker.tensors import Tensor

Run = Callable[[list[Tensor]], list[Tensor]]


def in_one(run: Run, requests: Sequence[InferenceRequest], *, has_rows: bool) -> list[InferenceResponse] | None:
    """The answers of one run over all rows. None if that cannot be: the requests do not fit together, the run failed, or what came out
    has other rows than what went in. Then each is run alone, so that one caller's mistake is not the others'.
    """
    if not has_rows or len(requests) < 2 or not _fit_together(requests):
        return None
    try:
        found = run([_joined([request.inputs()[index] for request in requests]) for index in range(len(requests[0].inputs()))])
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # the boundary of a native engine; each hears of his own in his own run
        return None
    ends = np.cumsum([_rows(request) for request in requests]).tolist()
    if any(not tensor.shape() or tensor.shape()[0] != ends[-1] for tensor in found):
        return None
    return [
        InferenceResponse([_part(tensor, end - _rows(request), end) for tensor in found])
        for request, end in zip(requests, ends, strict=True)
    ]


def _fit_together(requests: Sequence[InferenceRequest]) -> bool:
    """The same inputs, of the same types and the same sizes but for the rows."""
    kinds = {tuple((t.name(), t.triton_dtype(), tuple(t.shape()[1:]), len(t.shape())) for t in request.inputs()) for request in requests}
    return len(kinds) == 1 and all(size > 0 for *_, size in next(iter(kinds)))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    first = parts[0].named
    return Tensor.of(NamedArray(first.name, first.datatype, np.concatenate([part.named.data for part in parts])))


def _part(tensor: Tensor, begin: int, end: int) -> Tensor:
    named = tensor.named
    return Tensor.of(NamedArray(named.name, named.datatype, named.data[begin:end]))


def _rows(request: InferenceRequest) -> int:
    return request.inputs()[0].shape()[0]
