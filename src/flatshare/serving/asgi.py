"""From ASGI to a handler: the body read within bounds, the reply sent."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from flatshare.core.errors import BodyTooLarge
from flatshare.wire.http import TOO_LARGE, Handler, Reply, Request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def asgi(handler: Handler, *, max_body_bytes: int) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI app that reads a request of bounded size, asks `handler`, and sends its reply.

    A body beyond the limit reaches the handler as an empty one with the header `x-flatshare-too-large`, so that each
    protocol can word its own refusal.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = _headers(scope["headers"])
        try:
            body = await _read_body(receive, max_body_bytes)
        except BodyTooLarge:
            headers[TOO_LARGE] = b"1"
            body = b""
        except _CallerGone:
            return
        request = Request(
            scope["method"], unquote(scope["raw_path"].split(b"?")[0].decode("latin-1")), headers, body, scope["query_string"]
        )
        reply = await handler(request)
        await send({"type": "http.response.start", "status": reply.status, "headers": _reply_headers(reply)})
        await send({"type": "http.response.body", "body": reply.body if request.method != "HEAD" else b""})

    return app


class _CallerGone(Exception):
    """The caller hung up before the body was complete: there is nobody to answer."""


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        headers[name] = headers[name] + b"," + value if name in headers else value
    headers.pop(TOO_LARGE, None)
    return headers


def _reply_headers(reply: Reply) -> list[tuple[bytes, bytes]]:
    fixed = [(b"content-length", str(len(reply.body)).encode())]
    if reply.body:
        fixed.append((b"content-type", reply.content_type))
    return fixed + reply.headers


async def _read_body(receive: Receive, max_bytes: int) -> bytes:
    message = await receive()
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise _CallerGone
        part = message.get("body", b"")
        size += len(part)
        if size <= max_bytes:
            parts.append(part)
        else:
            parts.clear()  # go on reading, so that the caller hears the answer, but keep nothing
        if not message.get("more_body"):
            break
        message = await receive()
    if size > max_bytes:
        raise BodyTooLarge(f"the body has {size} bytes; at most {max_bytes} are accepted")
    return parts[0] if len(parts) == 1 else b"".join(parts)
