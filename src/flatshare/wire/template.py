"""Ground floor: what a fleet driver and its template process tell each other, a message per datagram. Standard library only."""

import json
from dataclasses import asdict, dataclass

MAX_MESSAGE_BYTES = 64 * 1024
"""Arguments of an instance are a few hundred bytes, paths included."""


@dataclass(frozen=True, slots=True)
class Order:
    """Fork an instance with these arguments. With it come two descriptors: its stdin, and its stdout and stderr."""

    number: int
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Born:
    """An order was carried out. With it comes a descriptor of the process (pidfd)."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Stillborn:
    """An order could not be carried out."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A process has ended: its exit status, negative if a signal ended it."""

    pid: int
    status: int


Message = Order | Born | Stillborn | Ended
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Order, Born, Stillborn, Ended)}


def render(message: Message) -> bytes:
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()


def parse(data: bytes) -> Message:
    """Both ends are ours and of one version: what cannot be read is a bug, and raises."""
    fields = json.loads(data)
    kind = _KINDS[fields.pop("kind")]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
