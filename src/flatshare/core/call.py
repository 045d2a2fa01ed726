"""One inference, as data: what goes into an engine and what comes out, whatever the protocol and whatever the engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from flatshare.core.tensor import Tensor

Scalar = str | int | float | bool
FIRST_VERSION = "1"
"""Of a model that has no versions: a new artifact takes the place of the old one."""


@dataclass(frozen=True, slots=True, eq=False)
class InferCall:
    """What a caller asks a model."""

    inputs: Mapping[str, Tensor]
    """By name, in the caller's order."""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    """Names of the outputs asked for; none means all."""
    id: str | None = None
    version: str = ""
    """The one asked for; none means the model's own choice, its latest."""


@dataclass(frozen=True, slots=True, eq=False)
class InferResult:
    """What a model answers."""

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar | tuple[int, ...]] = field(default_factory=dict)
    """Remarks on the answer: how many tokens were run, which texts were cut."""
    version: str = FIRST_VERSION
    """Of the model that answered."""
    is_final: bool = True
    """Of a model that answers one call several times: no other comes after it."""

    def output(self, name: str) -> Tensor:
        """Raises KeyError if there is none of this name."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where an instance finds a model: the artifact, and the prefix that its files may not leave."""

    uri: str
    root: str


class Urgency(StrEnum):
    """Whether somebody waits for a model that has to be brought here."""

    DEMAND = "demand"
    AHEAD = "ahead"
