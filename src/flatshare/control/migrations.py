"""Step 3 of 4 on a deployment's path: how the tables came to be what they are, one small step after another.

A step is never changed once it was released. Each is plain SQL that SQLite and PostgreSQL both understand (docs/decisions/0011).
"""

from dataclasses import dataclass

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from flatshare.core.errors import IncompatibleState
from flatshare.telemetry.log import get_logger

log = get_logger("control")
_LOCK_KEY = 0x666C6175  # PostgreSQL: of two control planes that start together, one migrates and the other waits


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    what: str
    statements: tuple[str, ...]


# Version 1 is also what databases of flatshare 0.1 have, which knew no versions: hence IF NOT EXISTS.
MIGRATIONS = (
    Migration(
        1,
        "models, configurations, endpoints, tags",
        (
            """CREATE TABLE IF NOT EXISTS models (
                name VARCHAR(63) PRIMARY KEY NOT NULL, created_s DOUBLE PRECISION NOT NULL, definition JSON NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS endpoint_configs (
                name VARCHAR(63) PRIMARY KEY NOT NULL, created_s DOUBLE PRECISION NOT NULL, definition JSON NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS endpoints (
                name VARCHAR(63) PRIMARY KEY NOT NULL, created_s DOUBLE PRECISION NOT NULL, modified_s DOUBLE PRECISION NOT NULL,
                revision INTEGER NOT NULL, status VARCHAR(32) NOT NULL, failure_reason TEXT,
                active JSON, target JSON, deployment_config JSON)""",
            """CREATE TABLE IF NOT EXISTS tags (
                arn VARCHAR(256) NOT NULL, key VARCHAR(128) NOT NULL, value VARCHAR(256) NOT NULL, PRIMARY KEY (arn, key))""",
        ),
    ),
    Migration(
        2,
        "lists by time, which is how they are sorted unless asked otherwise",
        (
            "CREATE INDEX models_by_time ON models (created_s, name)",
            "CREATE INDEX endpoint_configs_by_time ON endpoint_configs (created_s, name)",
            "CREATE INDEX endpoints_by_time ON endpoints (created_s, name)",
        ),
    ),
    Migration(
        3,
        "versions and aliases of models",
        ("CREATE TABLE releases (model VARCHAR(127) PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, record TEXT NOT NULL)",),
    ),
)


def migrate(connection: Connection, *, now_s: float) -> None:
    """Do, within the caller's transaction, every step that this database has not seen. Raises IncompatibleState if it has seen more."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK_KEY)))
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER PRIMARY KEY NOT NULL, applied_s DOUBLE PRECISION NOT NULL)"
    )
    seen: set[int] = set(connection.execute(sql.text("SELECT version FROM schema_versions")).scalars())
    newest = MIGRATIONS[-1].version
    if max(seen, default=0) > newest:
        raise IncompatibleState(
            f"the database was written by a newer flatshare (its tables are version {max(seen)}, this one knows {newest}): "
            "start that version, or use a backup of the database"
        )
    for migration in MIGRATIONS:
        if migration.version not in seen:
            for statement in migration.statements:
                connection.exec_driver_sql(statement)
            row = {"version": migration.version, "applied_s": now_s}
            connection.execute(sql.text("INSERT INTO schema_versions (version, applied_s) VALUES (:version, :applied_s)"), row)
            log.info("database_migrated", version=migration.version, what=migration.what)
