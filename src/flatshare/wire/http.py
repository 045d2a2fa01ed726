"""HTTP at its plainest: a request and a reply as data.

Every door (gateway, control, instance) is `async (Request) -> Reply`, so a test calls it without a server.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from flatshare.core.errors import BodyTooLarge

JSON = b"application/json"
REQUEST_ID = b"x-amzn-requestid"
"""On every answer, and on what the gateway asks an instance, so that both logs tell of the same request."""


@dataclass(slots=True)
class Request:
    """One HTTP request, its body read. `path` is percent-decoded; header names are lower case, repeated headers joined by commas."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    query: bytes = b""
    raw_path: bytes = b""
    """The path as it was sent: what a signature covers."""
    peer: str = ""
    """The address that it came from."""
    id: str = ""
    """Given by the front door; every answer and every log line of the request carries it."""
    outlet: "Outlet | None" = None
    """The short way for the answer, if the server has one."""

    def header(self, name: str, default: str = "") -> str:
        """The header's text; every byte maps to a character, so nothing is lost."""
        value = self.headers.get(name.encode())
        return default if value is None else value.decode("latin-1")


class Outlet(Protocol):
    """Lets the thread that has an answer send it, before the event loop hears of it."""

    def send(self, reply: "Reply") -> None:
        """From any thread, once a request. It is the answer then, whatever the handler returns; what could not be sent follows."""


class Parts(Protocol):
    """A body that comes piece by piece. Whoever holds it must close it, whether or not it was read to its end."""

    def __aiter__(self) -> "Parts": ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Nobody reads on: what makes the parts stops, and what it held is given back. May be called twice."""


@dataclass(slots=True)
class Reply:
    """One HTTP answer."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    afterwards: Callable[[], None] | None = None
    """Called once the answer is on its way: bookkeeping that the caller need not wait for."""
    parts: Parts | None = None
    """In place of `body`."""


Handler = Callable[[Request], Awaitable[Reply]]

CALLER = "x-flatshare-caller"
"""Header of a control call with who made it, by authentication; the front door sets it, or takes it away."""
TOO_LARGE = b"x-flatshare-too-large"
"""Stands in a request's headers if its body was dropped for its size; no caller can set it."""


def require_body_within(request: Request, max_bytes: int) -> None:
    """Raises BodyTooLarge if the adapter had to drop the body."""
    if TOO_LARGE in request.headers:
        raise BodyTooLarge(f"the body is larger than the {max_bytes} bytes that are accepted: send fewer texts in a call")


def single_line(text: str) -> str:
    """The text as a header value: no line ends, ASCII only."""
    return " ".join(text.split()).encode("ascii", "replace").decode()
