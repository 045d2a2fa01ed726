"""`flatshare serve` where it cannot serve."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from flatshare.bench.server import RunningServer
from tests.e2e.servers import clean_environment, command

pytestmark = pytest.mark.slow


def _fails(arguments: list[str]) -> str:
    """What it prints before it ends, without a traceback, with a status that is not 0."""
    done = subprocess.run(arguments, capture_output=True, check=False, timeout=30, text=True, env=clean_environment())
    assert done.returncode not in {0, -6, -9, -11}
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_port_that_is_in_use_is_named(cli_server: RunningServer, tmp_path: Path) -> None:
    arguments = command(tmp_path, "1GiB")
    arguments[arguments.index("--port") + 1] = str(cli_server.port)
    said = _fails(arguments)
    assert str(cli_server.port) in said
    assert "in use" in said


def test_a_second_server_over_the_same_data_is_refused(cli_server: RunningServer, cli_data: Path) -> None:
    assert f"another server runs over {cli_data}" in _fails(command(cli_data, "1GiB"))


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "control.db")) as database, database:
        database.execute("CREATE TABLE schema_versions (version INTEGER PRIMARY KEY NOT NULL, applied_s DOUBLE PRECISION NOT NULL)")
        database.execute("INSERT INTO schema_versions VALUES (999, 1.0)")
    assert "written by a newer flatshare" in _fails(command(tmp_path, "1GiB"))


def test_a_database_without_its_driver_is_told_how_to_get_it(tmp_path: Path) -> None:
    assert "flatshare[postgres]" in _fails([*command(tmp_path, "1GiB"), "--database", "postgresql+nodriver://host/name"])
