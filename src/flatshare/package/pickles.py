"""torch's own files, `pytorch_model.bin`: read only in torch's restricted mode, which admits tensors and nothing that runs.

Needs the extra `torch`. Such a file is only ever opened in the import process.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.weights import FLOATS, WeightEntry, narrowed

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32", "bool": "BOOL"}


class PickleFile:
    """A state dict that torch has pickled. Raises BadPackage if it is anything else, UnsupportedModel without torch."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._tensors = _load(path)
        self.entries = {
            name: WeightEntry(name, _DTYPES.get(str(tensor.dtype).removeprefix("torch."), "OTHER"), tuple(tensor.shape), 0, 0)
            for name, tensor in self._tensors.items()
        }

    def float32(self, entry: WeightEntry) -> NDArray[np.float32]:
        tensor = self._tensors[entry.name].detach()
        if entry.dtype not in FLOATS:
            raise BadPackage(f"tensor '{entry.name}' in {self._name} is of type {tensor.dtype}: weights must be floats")
        if entry.dtype == "BF16":
            tensor = tensor.float()  # numpy has no such type; nothing is lost
        values: NDArray[np.floating[Any]] = tensor.contiguous().numpy()
        return narrowed(entry, values, self._name)

    def stated(self, entry: WeightEntry) -> None:
        """Nobody says what the digests are."""


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise UnsupportedModel(
            f"{path.name} needs torch to be read: pip install 'flatshare[torch]' where the instance runs, or save the model as safetensors"
        ) from error
    try:
        # Mapped where the format allows: the file's own sizes are checked against it, and nothing is inflated into memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        sentence = str(error).partition("\n")[0][:200]
        raise BadPackage(f"{path.name} is damaged, or holds more than tensors, which is not opened: {sentence}") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(t, torch.Tensor) for name, t in state.items()):
        raise BadPackage(f"{path.name} holds something other than tensors by name: save the model's state_dict()")
    return state
