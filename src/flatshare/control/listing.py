"""Step 2 of 4 on a deployment's path: what the List operations share, as pure functions: filter, sort, page.

A page ends with the key of its last item, not with a count: what is created or deleted meanwhile repeats and hides nothing.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

_DEFAULT_PAGE_ITEMS = 10  # ListEndpoints' documented default; the others document none


@dataclass(frozen=True, slots=True)
class Listed:
    """One item of a list, with everything that lists filter and sort by."""

    name: str
    created_s: float
    modified_s: float = 0.0
    status: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    items: list[Listed]
    next_token: str | None


def list_page(items: list[Listed], params: Params) -> Page:
    """The page that the call asks for."""
    sort_by = params.get("SortBy", "CreationTime")
    is_descending = params.get("SortOrder", "Descending") == "Descending"
    key = _SORT_KEYS[sort_by]
    query = [sort_by, is_descending]
    items = sorted((item for item in items if _is_wanted(item, params)), key=key, reverse=is_descending)
    if "NextToken" in params:
        last = _decoded(params["NextToken"], query)
        items = [item for item in items if (key(item) < last if is_descending else key(item) > last)]
    count = params.get("MaxResults", _DEFAULT_PAGE_ITEMS)
    shown = items[:count]
    return Page(shown, _encoded(query, key(shown[-1])) if len(items) > count else None)


_SORT_KEYS: dict[str, Callable[[Listed], tuple[Any, str]]] = {
    "Name": lambda item: (item.name, item.name),
    "CreationTime": lambda item: (item.created_s, item.name),
    "Status": lambda item: (item.status, item.name),
}


def _is_wanted(item: Listed, params: Params) -> bool:
    return (
        params.get("NameContains", "").lower() in item.name.lower()
        and item.created_s < params.get("CreationTimeBefore", float("inf"))
        and item.created_s >= params.get("CreationTimeAfter", 0.0)
        and item.modified_s < params.get("LastModifiedTimeBefore", float("inf"))
        and item.modified_s >= params.get("LastModifiedTimeAfter", 0.0)
        and item.status == params.get("StatusEquals", item.status)
    )


def _encoded(query: list[Any], last: tuple[Any, str]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([*query, *last])).decode()


def _decoded(token: str, query: list[Any]) -> tuple[Any, str]:
    try:
        sort_by, is_descending, value, name = orjson.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError):
        raise _invalid_token() from None
    is_sound = isinstance(value, float if sort_by == "CreationTime" else str) and isinstance(name, str)
    if [sort_by, is_descending] != query or not is_sound:
        raise _invalid_token()
    return value, name


def _invalid_token() -> ValidationFailed:
    return ValidationFailed("Invalid NextToken: pass the token of the previous page with the same SortBy and SortOrder.")
