"""`pb_utils.Tensor`, and the names of types in the three spellings that meet here: Triton's config, the v2 protocol, numpy."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.pyworker.frames import DTYPES, NamedArray

_NUMBERS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16")
"""Triton's enumeration: the place in the list, counted from one, is the type's number."""
_CPU = (1, 0)  # DLPack's device: kDLCPU


class TritonModelException(Exception):
    """What Triton's own utilities raise."""


def datatype_of(dtype: Any) -> str:
    """The v2 name. Raises TritonModelException for a type that has none."""
    kind = np.dtype(dtype)
    if kind.kind in "OSU":
        return "BYTES"
    found = next((name for name, known in DTYPES.items() if known == kind and name != "BF16"), None)
    if found is None:
        raise TritonModelException(f"numpy type {kind} has no counterpart among Triton's types: convert the array first")
    return found


def config_datatype(data_type: str) -> str:
    """`TYPE_FP32` of a model config as the v2 protocol's `FP32`."""
    name = data_type.removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def triton_string_to_numpy(triton_type_string: str) -> Any:
    name = config_datatype(triton_type_string)
    if name == "BF16" or name not in {*DTYPES, "BYTES"}:
        raise KeyError(triton_type_string)
    return np.object_ if name == "BYTES" else DTYPES[name].type


def triton_to_numpy_type(data_type: int) -> Any:
    name = _NUMBERS[data_type - 1]
    return np.object_ if name == "BYTES" else DTYPES[name].type


def numpy_to_triton_type(data_type: Any) -> int:
    return _NUMBERS.index(datatype_of(data_type)) + 1


class Tensor:
    """A named array. What is given is kept, not copied."""

    def __init__(self, name: str, numpy_array: NDArray[Any]) -> None:
        if not isinstance(numpy_array, np.ndarray):
            raise TritonModelException(f"tensor '{name}' needs a numpy array, not {type(numpy_array).__name__}")
        datatype = datatype_of(numpy_array.dtype)
        self._named = NamedArray(name, datatype, numpy_array.astype(np.object_) if numpy_array.dtype.kind in "SU" else numpy_array)

    @classmethod
    def of(cls, named: NamedArray) -> "Tensor":
        """For the host: a tensor that arrived."""
        tensor = cls.__new__(cls)
        tensor._named = named
        return tensor

    @property
    def named(self) -> NamedArray:
        """For the host: the tensor as it is sent."""
        return self._named

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        """Takes a capsule, or an object that can give one; of a torch tensor in bfloat16 the bits."""
        if str(getattr(tensor, "dtype", "")) == "torch.bfloat16":
            bits = tensor.detach().contiguous().view(sys.modules["torch"].int16).numpy().view(np.uint16)
            return Tensor.of(NamedArray(name, "BF16", bits))
        source = tensor if hasattr(tensor, "__dlpack__") else _Capsule(tensor)
        try:
            array: NDArray[Any] = np.from_dlpack(source)
        except (RuntimeError, BufferError, TypeError, ValueError) as error:
            raise TritonModelException(f"tensor '{name}' cannot be taken by DLPack: {error}") from error
        return Tensor.of(NamedArray(name, datatype_of(array.dtype), array))

    def name(self) -> str:
        return self._named.name

    def as_numpy(self) -> NDArray[Any]:
        if self._named.datatype == "BF16":
            raise TritonModelException("numpy has no bfloat16: take the tensor by to_dlpack()")
        return self._named.data

    def shape(self) -> list[int]:
        return list(self._named.data.shape)

    def triton_dtype(self) -> int:
        return _NUMBERS.index(self._named.datatype) + 1

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        return self.__dlpack__()

    def __dlpack__(self, *_: object, **__: object) -> Any:
        if self._named.datatype == "BYTES":
            raise TritonModelException("DLPack has no strings: take the tensor by as_numpy()")
        if self._named.datatype == "BF16":
            torch = __import__("torch")
            return torch.from_numpy(self._named.data.view(np.int16)).view(torch.bfloat16).__dlpack__()
        data = self._named.data
        return (data if data.flags.writeable else data.copy()).__dlpack__()  # older numpy exports only what may be written

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU


class _Capsule:
    """A bare DLPack capsule as numpy wants it."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, *_: object, **__: object) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU
