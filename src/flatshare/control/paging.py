"""Step 3 of 4 on a deployment's path: a List call as a statement. The next items by key, so that the database reads no more than a page."""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from flatshare.control.listing import Listed, ListQuery

Filter = Callable[[sql.Table, Any], sql.ColumnElement[bool]]
_FILTERS: Mapping[str, Filter] = {
    "NameContains": lambda table, text: sql.func.lower(table.c.name).contains(text.lower(), autoescape=True),
    "CreationTimeBefore": lambda table, moment_s: table.c.created_s < moment_s,
    "CreationTimeAfter": lambda table, moment_s: table.c.created_s >= moment_s,
    "LastModifiedTimeBefore": lambda table, moment_s: table.c.modified_s < moment_s,
    "LastModifiedTimeAfter": lambda table, moment_s: table.c.modified_s >= moment_s,
    "StatusEquals": lambda table, status: table.c.status == status,
}
_SORT_COLUMNS = {"Name": "name", "CreationTime": "created_s", "Status": "status"}
_LISTED = ("name", "created_s", "modified_s", "status")


def next_items(connection: Connection, table: sql.Table, query: ListQuery) -> list[Listed]:
    """One more than the page takes, if there are so many: that tells whether another page follows."""
    columns = [table.c[name] for name in _LISTED if name in table.c]
    statement = sql.select(*columns).where(*(_FILTERS[name](table, query.filters[name]) for name in _FILTERS if name in query.filters))
    name = _bytewise(connection, table.c.name)
    column = table.c[_SORT_COLUMNS[query.sort_by]]
    key = column if query.sort_by == "CreationTime" else _bytewise(connection, column)
    if query.last is not None:
        here, there = sql.tuple_(key, name), sql.tuple_(sql.literal(query.last.key), sql.literal(query.last.name))
        statement = statement.where(here < there if query.is_descending else here > there)
    order = [part.desc() if query.is_descending else part.asc() for part in (key, name)]
    return [Listed(**row._mapping) for row in connection.execute(statement.order_by(*order).limit(query.count + 1))]


def _bytewise(connection: Connection, column: Any) -> Any:
    """SQLite sorts by bytes; PostgreSQL by the rules of some language, unless told."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column
