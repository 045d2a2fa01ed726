"""What holds on SQLite and on PostgreSQL alike: migrations, transactions that lose nothing, one leader."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sql
from sqlalchemy.engine import Connection

from flatshare.control import state
from flatshare.control.database import Database
from flatshare.control.migrations import MIGRATIONS
from flatshare.control.state import Definition, Rows
from flatshare.core.errors import IncompatibleState, Overloaded

NEWEST = MIGRATIONS[-1].version
_KINDS = {"DOUBLE": "REAL"}  # SQLite keeps what was written, and both are eight bytes there
VERSION_0_1 = MIGRATIONS[0].statements


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        database.open(now_s=1.0)
        yield database
    finally:
        database.close()


def versions(database: Database) -> list[int]:
    return database.read(lambda c: list(c.execute(sql.text("SELECT version FROM schema_versions ORDER BY version")).scalars()))


def shape(connection: Connection) -> dict[str, Any]:
    """The tables as the database tells them."""
    inspector = sql.inspect(connection)
    return {
        table: (
            {(c["name"], _KINDS.get(str(c["type"]), str(c["type"])), c["nullable"]) for c in inspector.get_columns(table)},
            inspector.get_pk_constraint(table)["constrained_columns"],
        )
        for table in inspector.get_table_names()
        if table != "schema_versions"
    }


def test_the_tables_are_those_that_the_statements_are_written_for(database_url: str) -> None:
    with opened(database_url) as database:
        migrated = database.read(shape)

        def anew(connection: Connection) -> dict[str, Any]:
            for table in migrated:
                connection.exec_driver_sql(f"DROP TABLE {table}")
            state._META.create_all(connection)
            return shape(connection)

        assert database.write(anew) == migrated


def test_a_second_start_finds_nothing_to_migrate(database_url: str) -> None:
    for _ in range(2):
        with opened(database_url) as database:
            assert versions(database) == list(range(1, NEWEST + 1))


def test_a_database_of_flatshare_0_1_keeps_what_it_has(database_url: str) -> None:
    old = Database(database_url)
    with opened(database_url) as database:  # makes the file or the schema; then back to how 0.1 left it
        database.write(
            lambda c: [
                c.exec_driver_sql(f"DROP TABLE {t}")
                for t in ("models", "endpoint_configs", "endpoints", "tags", "releases", "schema_versions")
            ]
        )
        database.write(lambda c: [c.exec_driver_sql(statement) for statement in VERSION_0_1])
        database.write(lambda c: Rows(c).models.add(Definition("m", 2.0, {"a": 1})))
        active = '{"id": "d", "config_name": "c", "variants": [{"name": "v", "count": 1, "weight": 1.0, "prefix": "s3://b/p"}]}'
        row = f"INSERT INTO endpoints VALUES ('e', 1.0, 1.0, 3, 'InService', NULL, '{active}', NULL, NULL)"
        database.write(lambda c: c.exec_driver_sql(row))
    old.close()
    with opened(database_url) as database:
        assert versions(database)[-1] == NEWEST
        assert database.read(lambda c: Rows(c).models.find("m")) == Definition("m", 2.0, {"a": 1})
        [endpoint] = database.read(lambda c: Rows(c).endpoints())
        assert endpoint.desired.active is not None
        assert (endpoint.desired.active.variants[0].prefix, endpoint.desired.active.shadows) == ("s3://b/p", ())


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database_url: str) -> None:
    with opened(database_url) as database:
        database.write(lambda c: c.exec_driver_sql(f"INSERT INTO schema_versions VALUES ({NEWEST + 1}, 1.0)"))
    with pytest.raises(IncompatibleState, match=f"version {NEWEST + 1}, this one knows {NEWEST}"), opened(database_url):
        pass


def test_control_planes_that_start_together_migrate_once(database_url: str) -> None:
    def start(_: int) -> list[int]:
        with opened(database_url) as database:
            return versions(database)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [list(range(1, NEWEST + 1))] * 4


def test_writers_on_two_control_planes_lose_no_update(database_url: str) -> None:
    """Read, add one, write: each of them would be lost if somebody else came in between."""
    rounds = 25

    def add_one(connection: Connection) -> None:
        tags = Rows(connection).tags("arn")
        Rows(connection).replace_tags("arn", {"count": str(int(tags.get("count", "0")) + 1)})

    def write(_: int) -> None:
        with opened(database_url) as database:
            barrier.wait(30)
            for _ in range(rounds):
                _until_done(lambda: database.write(add_one))

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    with opened(database_url) as database:
        assert database.read(lambda c: Rows(c).tags("arn")) == {"count": str(2 * rounds)}


def test_of_two_that_create_the_same_one_sees_the_other(database_url: str) -> None:
    def create(number: int) -> str:
        def attempt(connection: Connection) -> str:
            rows = Rows(connection)
            if rows.models.find("m"):
                return "exists"
            rows.models.add(Definition("m", float(number), {}))
            return "created"

        with opened(database_url) as database:
            barrier.wait(30)
            return database.write(attempt)

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(create, range(2))) == ["created", "exists"]


def test_a_look_sees_one_moment_though_somebody_writes(database_url: str) -> None:
    with opened(database_url) as reader, opened(database_url) as writer:

        def twice(connection: Connection) -> list[object]:
            before = Rows(connection).models.find("m")
            writer.write(lambda c: Rows(c).models.add(Definition("m", 1.0, {})))
            return [before, Rows(connection).models.find("m")]

        assert reader.read(twice) == [None, None]
        assert reader.read(lambda c: Rows(c).models.find("m")) is not None


def test_one_leads_and_another_takes_over_when_it_has_gone(database_url: str) -> None:
    with opened(database_url) as first:
        assert first.is_leader()
        with opened(database_url) as second:
            assert not second.is_leader()
            assert first.is_leader()
            first.close()
            until_leader(second)


def test_a_leader_whose_connection_was_cut_leads_no_more(postgres: str) -> None:
    url = postgres.format(database="postgres")
    with opened(url) as first, opened(url) as second:
        assert first.is_leader()
        cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        second.write(lambda c: c.exec_driver_sql(cut).all())
        until_leader(second)
        assert not first.is_leader()
        second.close()
        until_leader(first)


def until_leader(database: Database) -> None:
    """A server notices within a moment that a connection has ended."""
    ended = threading.Event()
    while not database.is_leader():
        assert not ended.wait(0.01)


def test_a_database_without_its_driver_is_told_how_to_get_it() -> None:
    with pytest.raises(IncompatibleState, match=r"flatshare\[postgres\]"), opened("postgresql+nodriver://h/d"):
        pass


def _until_done(write: Any) -> None:
    while True:
        try:
            write()
        except Overloaded:  # the caller is told to call again, and does
            continue
        return


async def test_a_writer_that_finds_sqlite_locked_is_told_to_call_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatshare.control.database._BUSY_S", 0.05)
    url = f"sqlite:///{tmp_path}/control.db"
    with opened(url) as first, opened(url) as second:

        def while_first_writes(_: Connection) -> None:
            with pytest.raises(Overloaded, match="call again"):
                second.write(lambda c: Rows(c).models.add(Definition("m", 1.0, {})))

        await asyncio.to_thread(first.write, while_first_writes)
