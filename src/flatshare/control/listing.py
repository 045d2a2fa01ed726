"""Step 2 of 4 on a deployment's path: what the List operations share: which items, in which order, from where on.

A page ends with the key of its last item, not with a count: what is created or deleted meanwhile repeats and hides nothing.
The database filters and sorts (`state.py`), so that a page costs the same however many items there are.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

_DEFAULT_PAGE_ITEMS = 10  # ListEndpoints' documented default; the others document none
SortBy = Literal["Name", "CreationTime", "Status"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One item of a list, with everything that lists filter and sort by."""

    name: str
    created_s: float
    modified_s: float = 0.0
    status: str = ""

    def key(self, sort_by: SortBy) -> float | str:
        """What it is sorted by, before its name."""
        if sort_by == "CreationTime":
            return self.created_s
        return self.name if sort_by == "Name" else self.status


@dataclass(frozen=True, slots=True)
class Last:
    """Where the previous page ended."""

    key: float | str
    name: str


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A List call."""

    sort_by: SortBy
    is_descending: bool
    count: int
    last: Last | None
    filters: Params
    """The call's own members, by AWS's names."""


@dataclass(frozen=True, slots=True)
class Page:
    items: Sequence[Listed]
    next_token: str | None


def list_query(params: Params) -> ListQuery:
    """Raises ValidationFailed for a token that is not one of ours, or of another order."""
    sort_by: SortBy = params.get("SortBy", "CreationTime")
    is_descending = params.get("SortOrder", "Descending") == "Descending"
    last = _decoded(params["NextToken"], sort_by, is_descending) if "NextToken" in params else None
    return ListQuery(sort_by, is_descending, params.get("MaxResults", _DEFAULT_PAGE_ITEMS), last, params)


def page_of(found: Sequence[Listed], query: ListQuery) -> Page:
    """The page, if `found` are the next items, one more than it takes if there are so many."""
    shown = found[: query.count]
    if len(found) <= query.count:
        return Page(shown, None)
    last = shown[-1]
    return Page(shown, _encoded(query.sort_by, query.is_descending, Last(last.key(query.sort_by), last.name)))


def _encoded(sort_by: SortBy, is_descending: bool, last: Last) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([sort_by, is_descending, last.key, last.name])).decode()


def _decoded(token: str, sort_by: SortBy, is_descending: bool) -> Last:
    try:
        told_sort_by, told_descending, key, name = orjson.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError):
        raise _invalid_token() from None
    is_sound = isinstance(key, float if sort_by == "CreationTime" else str) and isinstance(name, str)
    if [told_sort_by, told_descending] != [sort_by, is_descending] or not is_sound:
        raise _invalid_token()
    return Last(key, name)


def _invalid_token() -> ValidationFailed:
    return ValidationFailed("Invalid NextToken: pass the token of the previous page with the same SortBy and SortOrder.")
