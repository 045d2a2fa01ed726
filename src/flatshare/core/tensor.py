"""Tensors with names, as the Open Inference Protocol and Triton know them: what engines take and give, whatever the protocol.

https://github.com/kserve/open-inference-protocol (tensor data types)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadInput

BYTES, BF16 = "BYTES", "BF16"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    BF16: np.dtype(np.uint16),  # its bits: numpy has no such number
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    BYTES: np.dtype(object),  # of `bytes`
}
_NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items() if name != BF16}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named array. `data` has the dtype that `DTYPES` gives its datatype."""

    name: str
    datatype: str
    data: NDArray[Any]

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> "Tensor":
        """Its datatype follows from the array's; an object array must hold `bytes`."""
        return cls(name, _NAMES[array.dtype], array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def texts(self) -> list[str]:
        """The elements of a BYTES tensor, row by row. Raises BadInput if they are no UTF-8 text."""
        if self.datatype != BYTES:
            raise BadInput(f"tensor '{self.name}' is of datatype {self.datatype}: this model takes texts, datatype BYTES")
        try:
            return [item.decode() for item in self.data.reshape(-1)]
        except UnicodeDecodeError as error:
            raise BadInput(f"tensor '{self.name}' holds bytes that are not UTF-8: {error.reason} at byte {error.start}") from error


def text_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """A BYTES tensor [texts]. Raises BadInput for a text that UTF-8 cannot say (half a surrogate pair)."""
    data = np.empty(len(texts), object)
    try:
        for index, text in enumerate(texts):  # assigned as a slice, the list would become an array of its own first
            data[index] = text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"a text in '{name}' is not valid Unicode: {error.reason}") from error
    return Tensor(name, BYTES, data)
