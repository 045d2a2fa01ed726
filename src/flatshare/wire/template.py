"""Ground floor: what a fleet driver and its template process tell each other, a message per datagram."""

import msgspec

MAX_MESSAGE_BYTES = 64 * 1024
"""Arguments of an instance are a few hundred bytes, paths included."""


class Order(msgspec.Struct, frozen=True, tag=True):
    """Fork an instance with these arguments. With it come two descriptors: its stdin, and its stdout and stderr."""

    number: int
    arguments: tuple[str, ...]


class Born(msgspec.Struct, frozen=True, tag=True):
    """An order was carried out. With it comes a descriptor of the process (pidfd)."""

    number: int
    pid: int


class Stillborn(msgspec.Struct, frozen=True, tag=True):
    """An order could not be carried out."""

    number: int
    reason: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A process has ended: its exit status, negative if a signal ended it."""

    pid: int
    status: int


Report = Born | Stillborn | Ended


def render(message: Order | Report) -> bytes:
    return msgspec.json.encode(message)


def parse_order(data: bytes) -> Order:
    """Both ends are ours and of one version: what cannot be read is a bug, and raises."""
    return msgspec.json.decode(data, type=Order)


def parse_report(data: bytes) -> Report:
    """As `parse_order`, at the driver's end."""
    report: Report = msgspec.json.decode(data, type=Report)
    return report
