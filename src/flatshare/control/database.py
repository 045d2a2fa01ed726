"""Step 3 of 4 on a deployment's path: SQLite or PostgreSQL, so that a transaction means the same on both.

Every change is serializable: what an operation read is still so when it commits, whoever else writes to the same database, hence no
update is ever lost. SQLite lets one writer in at a time; PostgreSQL finds out at the commit, and the operation is done again.
Used from one thread.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sql
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import NoSuchModuleError as NoDriver

from flatshare.control.migrations import migrate
from flatshare.core.errors import IncompatibleState, Overloaded
from flatshare.telemetry.log import get_logger

T = TypeVar("T")
log = get_logger("control")
_TRIES = 20
_BUSY_S = 10.0  # a writer holds SQLite's lock for milliseconds
_LEADER_KEY = 0x666C6174  # of an advisory lock; any number would do, if all of ours take the same
_CONFLICTS = {"40001", "40P01"}  # PostgreSQL's serialization failure, and deadlock


class Leadership(Protocol):
    """One of the control planes over a database acts, the others only answer calls."""

    def is_held(self) -> bool:
        """Whether it is us; takes it, if nobody has it. It is given back by dying, however that happens."""

    def release(self) -> None: ...


class Database:
    """`open` first."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine: Engine | None = None
        self._leadership: Leadership = _Alone()

    def open(self, *, now_s: float) -> None:
        """Connect, and bring the tables to the form that this version knows. Raises IncompatibleState."""
        self._engine = _sqlite(self._url) if self._url.get_backend_name() == "sqlite" else _postgres(self._url)
        self._leadership = _leadership(self._url, self._engine)
        self.write(lambda connection: migrate(connection, now_s=now_s))

    def write(self, operation: Callable[[Connection], T]) -> T:
        """Do the operation in a transaction: all of it, or nothing if it raises. It may be done again, so it only reads and writes rows."""
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._connected(is_writing=True) as connection, connection.begin():
                    return operation(connection)
            except DBAPIError as error:
                if _is_conflict(error) and tries_left:
                    continue
                if _is_conflict(error) or _is_locked(error):
                    raise Overloaded("others change the same things all the time: call again") from error
                raise
        raise AssertionError("the last try returns or raises. This is a bug.")

    def read(self, operation: Callable[[Connection], T]) -> T:
        """Look at one moment of the database."""
        with self._connected(is_writing=False) as connection, connection.begin():
            return operation(connection)

    def is_leader(self) -> bool:
        return self._leadership.is_held()

    def close(self) -> None:
        self._leadership.release()
        if self._engine is not None:
            self._engine.dispose()

    def _connected(self, *, is_writing: bool) -> Connection:
        assert self._engine is not None, "used before open(). This is a bug."
        if self._engine.dialect.name == "sqlite":
            return self._engine.connect().execution_options(begin="IMMEDIATE" if is_writing else "DEFERRED")
        level = "SERIALIZABLE" if is_writing else "REPEATABLE READ"
        return self._engine.connect().execution_options(isolation_level=level, postgresql_readonly=not is_writing)


def _sqlite(url: URL) -> Engine:
    is_file = bool(url.database)
    if is_file:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sql.create_engine(url, connect_args={"timeout": _BUSY_S})

    @sql.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: Python's driver begins them at the first write, after reading
        if is_file:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous=FULL")  # what was answered has reached the disk

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options()['begin']}")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Readers (a dashboard, a backup) and the writer do not block each other then. SQLite does not wait here for others who open."""
    give_up_s = time.monotonic() + _BUSY_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_s:
                raise


def _postgres(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        return sql.create_engine(url, pool_pre_ping=True)
    except (NoDriver, ImportError) as error:
        raise IncompatibleState(
            f"no driver for {url.drivername} is installed ({error}): pip install 'flatshare[postgres]' for PostgreSQL, or use SQLite"
        ) from error


def _is_conflict(error: DBAPIError) -> bool:
    """Whether somebody else was faster. A key that exists already is one too: done again, the operation sees it and says so."""
    return isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) in _CONFLICTS


def _is_locked(error: DBAPIError) -> bool:
    """SQLite only: it has waited already."""
    return isinstance(error, OperationalError) and "database is locked" in str(error.orig)


def _leadership(url: URL, engine: Engine) -> Leadership:
    if url.get_backend_name() != "sqlite":
        return _AdvisoryLock(engine)
    return _FileLock(Path(f"{url.database}.leader")) if url.database else _Alone()


class _Alone:
    """A database in memory has one control plane."""

    def is_held(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing was taken."""


class _FileLock:
    """Beside the SQLite file. The kernel unlocks it when we end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def is_held(self) -> bool:
        if self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by the instances
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _AdvisoryLock:
    """PostgreSQL's, held by a connection of its own: the server gives it up when that connection ends."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def is_held(self) -> bool:
        try:
            if self._connection is not None:
                self._connection.execute(sql.text("SELECT 1"))  # or the lock went with it
                return True
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(sql.select(sql.func.pg_try_advisory_lock(_LEADER_KEY))).scalar_one():
                self._connection = connection
                return True
            connection.close()
        except DBAPIError as error:
            log.warning("leadership_lost", reason=str(error.orig))
            self.release()
        return False

    def release(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # ends the session, and the lock with it, where close() would give it to the pool
            self._connection.close()
            self._connection = None
