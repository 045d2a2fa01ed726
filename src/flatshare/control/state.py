"""Step 3 of 4 on a deployment's path: desired state, in SQL. One transaction per operation.

The same statements run on SQLite and PostgreSQL, on tables that `migrations.py` made. They run on one thread of their own, not on
the event loop: a SQLite commit waits for the disk and a PostgreSQL server may be far, while the gateway answers on the same loop.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sql
from sqlalchemy.engine import Connection

from flatshare.control.database import Database
from flatshare.control.listing import Listed, ListQuery
from flatshare.control.paging import next_items
from flatshare.control.rollouts import rollout_of
from flatshare.core.ids import EndpointName, VariantName
from flatshare.core.release import ModelReleases
from flatshare.policy.diff import Deployment, DeploymentId, DesiredEndpoint, Status, Variant
from flatshare.policy.rollout import Progress

T = TypeVar("T")
_META = sql.MetaData()
_MODELS, _CONFIGS = (
    sql.Table(
        name,
        _META,
        sql.Column("name", sql.String(63), primary_key=True),
        sql.Column("created_s", sql.Double, nullable=False),
        sql.Column("definition", sql.JSON, nullable=False),
    )
    for name in ("models", "endpoint_configs")
)
_ENDPOINTS = sql.Table(
    "endpoints",
    _META,
    sql.Column("name", sql.String(63), primary_key=True),
    sql.Column("created_s", sql.Double, nullable=False),
    sql.Column("modified_s", sql.Double, nullable=False),
    sql.Column("revision", sql.Integer, nullable=False),
    sql.Column("status", sql.String(32), nullable=False),
    sql.Column("failure_reason", sql.Text),
    sql.Column("active", sql.JSON(none_as_null=True)),
    sql.Column("target", sql.JSON(none_as_null=True)),
    sql.Column("deployment_config", sql.JSON(none_as_null=True)),
)
_TAGS = sql.Table(
    "tags",
    _META,
    sql.Column("arn", sql.String(256), primary_key=True),
    sql.Column("key", sql.String(128), primary_key=True),
    sql.Column("value", sql.String(256), nullable=False),
)
_RELEASES = sql.Table(
    "releases",
    _META,
    sql.Column("model", sql.String(127), primary_key=True),
    sql.Column("revision", sql.Integer, nullable=False),
    sql.Column("record", sql.Text, nullable=False),
)
_MAX_REASON_CHARS = 1024  # FailureReason in AWS's model


@dataclass(frozen=True, slots=True)
class Definition:
    """A model or an endpoint configuration: its Create call, kept as it came."""

    name: str
    created_s: float
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    desired: DesiredEndpoint
    created_s: float
    modified_s: float
    failure_reason: str | None = None
    deployment_config: Mapping[str, Any] | None = None


class State:
    """The database. `change` and `look` are the only ways in."""

    def __init__(self, database_url: str) -> None:
        self._database = Database(database_url)
        # One thread: an in-memory SQLite database, which belongs to its thread, stays whole.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="control-state")

    async def open(self, *, now_s: float) -> None:
        """Raises IncompatibleState if this version cannot use the database."""
        await self._on_thread(lambda: self._database.open(now_s=now_s))

    async def change(self, operation: Callable[["Rows"], T]) -> T:
        """Do the operation in a transaction: all of it, or nothing if it raises. It may be run again, so it does nothing else."""
        return await self._on_thread(lambda: self._database.write(lambda connection: operation(Rows(connection))))

    async def look(self, operation: Callable[["Rows"], T]) -> T:
        """What the rows say, all at one moment."""
        return await self._on_thread(lambda: self._database.read(lambda connection: operation(Rows(connection))))

    async def is_leader(self) -> bool:
        """Whether this control plane is the one that acts. False for the others that share the database."""
        return await self._on_thread(self._database.is_leader)

    async def close(self) -> None:
        await self._on_thread(self._database.close)
        self._thread.shutdown()

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Definitions:
    """The rows of one kind of definition, within a transaction."""

    def __init__(self, connection: Connection, table: sql.Table) -> None:
        self._connection = connection
        self._table = table

    def find(self, name: str) -> Definition | None:
        row = self._connection.execute(sql.select(self._table).where(self._table.c.name == name)).one_or_none()
        return None if row is None else Definition(row.name, row.created_s, row.definition)

    def page(self, query: ListQuery) -> list[Listed]:
        """The next items that the query asks for, and one more."""
        return next_items(self._connection, self._table, query)

    def add(self, definition: Definition) -> None:
        row = {"name": definition.name, "created_s": definition.created_s, "definition": dict(definition.params)}
        self._connection.execute(sql.insert(self._table), row)

    def remove(self, name: str) -> None:
        self._connection.execute(sql.delete(self._table).where(self._table.c.name == name))


class Rows:
    """Everything stored, within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.models = Definitions(connection, _MODELS)
        self.configs = Definitions(connection, _CONFIGS)

    def endpoint(self, name: str) -> Endpoint | None:
        row = self._connection.execute(sql.select(_ENDPOINTS).where(_ENDPOINTS.c.name == name)).one_or_none()
        return None if row is None else _endpoint(row)

    def endpoints(self) -> list[Endpoint]:
        return [_endpoint(row) for row in self._connection.execute(sql.select(_ENDPOINTS).order_by(_ENDPOINTS.c.created_s))]

    def endpoint_page(self, query: ListQuery) -> list[Listed]:
        """The next items that the query asks for, and one more."""
        return next_items(self._connection, _ENDPOINTS, query)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        self._connection.execute(sql.insert(_ENDPOINTS), _endpoint_columns(endpoint))

    def save_endpoint(self, endpoint: Endpoint) -> None:
        """Replace the row, as a new revision."""
        columns = _endpoint_columns(endpoint) | {"revision": _ENDPOINTS.c.revision + 1}
        self._connection.execute(sql.update(_ENDPOINTS).where(_ENDPOINTS.c.name == endpoint.desired.name).values(columns))

    def remove_endpoint(self, name: str) -> None:
        self._connection.execute(sql.delete(_ENDPOINTS).where(_ENDPOINTS.c.name == name))

    def tags(self, arn: str) -> dict[str, str]:
        rows = self._connection.execute(sql.select(_TAGS.c.key, _TAGS.c.value).where(_TAGS.c.arn == arn).order_by(_TAGS.c.key))
        return {row.key: row.value for row in rows}

    def replace_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        self._connection.execute(sql.delete(_TAGS).where(_TAGS.c.arn == arn))
        if tags:
            self._connection.execute(sql.insert(_TAGS), [{"arn": arn, "key": key, "value": tags[key]} for key in tags])

    def releases(self, model: str) -> ModelReleases | None:
        row = self._connection.execute(sql.select(_RELEASES.c.record).where(_RELEASES.c.model == model)).one_or_none()
        return None if row is None else msgspec.json.decode(row.record, type=ModelReleases)

    def release_revisions(self) -> dict[str, int]:
        """By model: what a reader needs to know which records are news."""
        return {row.model: row.revision for row in self._connection.execute(sql.select(_RELEASES.c.model, _RELEASES.c.revision))}

    def save_releases(self, releases: ModelReleases) -> None:
        columns = {"revision": releases.revision, "record": msgspec.json.encode(releases).decode()}
        changed = self._connection.execute(sql.update(_RELEASES).where(_RELEASES.c.model == releases.model).values(columns))
        if changed.rowcount == 0:
            self._connection.execute(sql.insert(_RELEASES), {"model": releases.model, **columns})


def _endpoint_columns(endpoint: Endpoint) -> dict[str, Any]:
    desired = endpoint.desired
    return {
        "name": desired.name,
        "created_s": endpoint.created_s,
        "modified_s": endpoint.modified_s,
        "revision": desired.revision,
        "status": desired.status.value,
        "failure_reason": endpoint.failure_reason and endpoint.failure_reason[:_MAX_REASON_CHARS],
        "active": asdict(desired.active) if desired.active else None,
        "target": asdict(desired.target) if desired.target else None,
        "deployment_config": endpoint.deployment_config,
    }


def _endpoint(row: Any) -> Endpoint:
    desired = DesiredEndpoint(
        EndpointName(row.name),
        row.revision,
        Status(row.status),
        active=_deployment(row.active),
        target=_deployment(row.target),
        rollout=rollout_of(row.deployment_config),
    )
    return Endpoint(desired, row.created_s, row.modified_s, row.failure_reason, row.deployment_config)


def _deployment(data: Any) -> Deployment | None:
    if data is None:
        return None
    variants, shadows = (_variants(data.get(key, [])) for key in ("variants", "shadows"))
    progress = Progress(**data.get("progress", {}))
    return Deployment(DeploymentId(data["id"]), data["config_name"], variants, shadows, data.get("settings", {}), progress)


def _variants(listed: list[dict[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(**variant | {"name": VariantName(variant["name"])}) for variant in listed)
