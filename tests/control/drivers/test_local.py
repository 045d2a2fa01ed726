import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatshare.control.drivers.local import LocalDriver
from flatshare.core.errors import InstanceGone
from flatshare.core.settings import FleetSettings

from .conftest import STAND_IN, local_driver, spec


def has_ended(pid: int, timeout_s: float = 5.0) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


async def test_an_instance_gets_its_arguments_environment_and_log(local: LocalDriver, tmp_path: Path) -> None:
    instance = await local.start(spec(memory_bytes=4321))
    await local.set_memory(instance.id, 500)
    await local.stop(instance.id)
    log = (tmp_path / "log" / "i-1.log").read_text()
    assert log == "I am endpoint/variant with 4321 bytes; 1 arenas; changed artifacts: replace\nmemory 500\ndrained\n"


async def test_the_socket_lies_in_a_private_folder_that_goes_with_the_driver(local: LocalDriver) -> None:
    instance = await local.start(spec())
    folder = Path(instance.socket_path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(instance.socket_path.encode()) <= 107
    await local.close()
    assert not folder.exists()


async def test_an_instance_that_dies_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    async with local_driver(tmp_path, "crashing") as driver:
        with pytest.raises(InstanceGone, match=r"endpoint/variant exited with status 1(.|\n)*out of paint"):
            await driver.start(spec())
        assert not driver.is_alive(spec().id)


async def test_an_instance_that_never_answers_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    async with local_driver(tmp_path, "mute", start_timeout_s=0.2) as driver:
        with pytest.raises(InstanceGone, match=r"did not answer /ping within 0\.2 s"):
            await driver.start(spec())
        assert not driver.is_alive(spec().id)


async def test_an_instance_that_does_not_heed_sigterm_is_killed(tmp_path: Path) -> None:
    async with local_driver(tmp_path, "deaf") as driver:
        instance = await driver.start(spec())
        before_s = time.monotonic()
        await driver.stop(instance.id)
        assert time.monotonic() - before_s >= 0.2
        assert has_ended(instance.pid)


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    async with local_driver(tmp_path, "mute") as driver:
        start = asyncio.create_task(driver.start(spec()))
        log = tmp_path / "log" / "i-1.log"
        async with asyncio.timeout(5):
            while not log.exists() or not log.read_text():  # noqa: ASYNC110  (another process writes it)
                await asyncio.sleep(0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not driver.is_alive(spec().id)


async def test_a_share_that_the_instance_refuses_is_an_error(local: LocalDriver) -> None:
    instance = await local.start(spec())
    with pytest.raises(InstanceGone, match="refused its new share"):
        await local.set_memory(instance.id, -1)


async def test_a_socket_path_that_is_too_long_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_folder = tmp_path / ("x" * 90)
    long_folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long_folder))
    driver = LocalDriver(FleetSettings(log_dir=tmp_path))
    with pytest.raises(InstanceGone, match="set TMPDIR to a shorter folder"):
        await driver.start(spec())
    await driver.close()


PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from flatshare.control.drivers.base import InstanceSpec
from flatshare.control.drivers.local import LocalDriver
from flatshare.core.settings import FleetSettings

async def main():
    driver = LocalDriver(FleetSettings(log_dir=Path(sys.argv[1])), command=(sys.executable, sys.argv[2], "deaf"))
    instance = await driver.start(InstanceSpec("i-1", "e/v", 1))
    print(instance.pid, instance.socket_path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_no_instance_outlives_us_even_when_we_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(STAND_IN)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert has_ended(int(done.stdout.split()[0]))
