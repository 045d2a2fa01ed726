"""One call to a model, whatever the door that it came through, and what its instance said."""

from dataclasses import dataclass

from flatshare.core.ids import EndpointName, TargetModel, VariantName
from flatshare.core.state import VariantRoute
from flatshare.wire.http import Reply


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What a caller wants of a model."""

    endpoint: EndpointName
    target: TargetModel
    request_id: str
    variant: VariantName | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What the container may see."""
    body: bytes = b""
    method: str = "POST"
    action: str = "/invoke"
    """Which call of the container contract, below the model's path."""
    takes_parts: bool = False
    """The door can hand on an answer that comes in parts; for others it is collected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an instance said, an error of its own included, and the variant that it serves."""

    reply: Reply
    variant: VariantRoute
