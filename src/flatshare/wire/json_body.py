"""Ground floor: strangers' bytes as JSON, no deeper than code that walks it can bear."""

from typing import Any

import orjson

from flatshare.core.errors import BadInput

MAX_DEPTH = 64
"""AWS's deepest call has 9; the parser admits 1,023, which is more than Python's own recursion does."""


def parsed(body: bytes, what: str = "the body") -> Any:
    """Raises BadInput for what is not JSON, or nested too deeply; its sentence begins with `what`."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{what} is not valid JSON: {error}") from error
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deep(value):  # counting is cheap, and settles nearly all bodies
        raise BadInput(f"{what} is nested more than {MAX_DEPTH} deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [child for node in level for child in (node.values() if isinstance(node, dict) else node) if isinstance(child, list | dict)]
        if not inner:
            return False
        level = inner
    return True
