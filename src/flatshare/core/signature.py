"""What a model takes and gives: the basis of v2 metadata, of the check of a call, and of how a plain answer looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from flatshare.core.call import FIRST_VERSION, InferCall
from flatshare.core.errors import BadInput, UnknownTarget
from flatshare.core.tensor import Tensor


class Task(StrEnum):
    """What a model is for; decides the plain form of its answers."""

    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105  # no secret
    RANKING = "ranking"
    GENERATION = "generation"
    TENSORS = "tensors"
    """Anything: only v2 tensors in and out."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output. A size of -1 in the shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's interface."""

    task: Task
    platform: str
    """As v2 metadata names it: `flatshare_mapped`, `onnxruntime_onnx`, `python`, `ensemble` …"""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    versions: tuple[str, ...] = (FIRST_VERSION,)
    """That are served, ascending: the last is what a call gets that names none."""
    is_decoupled: bool = False
    """It may answer a call any number of times."""

    def require_version(self, version: str) -> None:
        """Raises UnknownTarget for one that is not served."""
        if version and version not in self.versions:
            raise UnknownTarget(f"the model has no version '{version[:64]}': it has {', '.join(self.versions)}")

    def require(self, call: InferCall) -> None:
        """Raises BadInput, with what the model takes, if the call's tensors or the outputs it asks for are none of the model's."""
        for tensor in call.inputs.values():
            if not any(info.name == tensor.name and _fits(tensor, info) for info in self.inputs):
                asked = f"'{tensor.name[:64]}' {tensor.datatype} {list(tensor.shape)}"
                raise BadInput(f"the model has no input {asked}: it takes {_listed(self.inputs)}")
        missing = [info for info in self.inputs if not info.is_optional and info.name not in call.inputs]
        if missing:
            raise BadInput(f"input {_listed(missing)} is missing: the model takes {_listed(self.inputs)}")
        if call.wanted and (unknown := [name for name in call.wanted if all(info.name != name for info in self.outputs)]):
            raise BadInput(f"the model has no output '{unknown[0][:64]}': it gives {_listed(self.outputs)}")


def _fits(tensor: Tensor, info: TensorInfo) -> bool:
    """A column of texts [n, 1] is taken where [n] is asked for: many clients send a dimension for the batch."""
    shape = tensor.shape
    if len(shape) == len(info.shape) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    is_of_shape = len(shape) == len(info.shape) and all(want in {-1, size} for size, want in zip(shape, info.shape, strict=True))
    return tensor.datatype == info.datatype and is_of_shape


def _listed(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(map(str, infos))
