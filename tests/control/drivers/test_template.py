"""What is forked from a template, the real one too."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatshare.bench.machine import family
from flatshare.control.drivers.local import LocalDriver
from flatshare.core.errors import InstanceGone
from flatshare.core.settings import FleetSettings

from .conftest import local_driver, spec


async def ended(pid: int) -> None:
    """Until the process is gone, or waits for its parent to ask how it ended."""
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":  # noqa: ASYNC110, ASYNC240  (nobody tells a stranger)
            await asyncio.sleep(0.005)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


async def test_instances_outlive_their_template_and_the_next_start_brings_up_another(tmp_path: Path) -> None:
    async with local_driver(tmp_path) as driver:
        first = await driver.start(spec("i-1"))
        template = parent_of(first.pid)
        os.kill(template, signal.SIGKILL)
        await ended(template)
        assert driver.is_alive(first.id)
        await driver.set_memory(first.id, 500)
        second = await driver.start(spec("i-2"))
        assert parent_of(second.pid) != template
        for instance in (first, second):
            exited = asyncio.create_task(driver.exited(instance.id))
            await asyncio.sleep(0)
            os.kill(instance.pid, signal.SIGKILL)
            await asyncio.wait_for(exited, 10)
            assert not driver.is_alive(instance.id)


async def test_a_template_that_dies_at_its_start_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    settings = FleetSettings(store_dir=tmp_path / "store", log_dir=tmp_path / "log")
    driver = LocalDriver(settings, command=(sys.executable, "-c", "raise SystemExit('no brushes')"))
    with pytest.raises(InstanceGone, match=r"template process .*template\.log"):
        await driver.start(spec())
    assert "no brushes" in (tmp_path / "log" / "template.log").read_text()
    assert not driver.is_alive(spec().id)
    await driver.close()


async def test_a_start_that_is_cancelled_before_the_fork_leaves_no_process(tmp_path: Path) -> None:
    async with local_driver(tmp_path) as driver:
        driver.prepare()
        start = asyncio.create_task(driver.start(spec("i-1")))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not driver.is_alive(spec("i-1").id)
        second = await driver.start(spec("i-2"))
        template = parent_of(second.pid)
        async with asyncio.timeout(10):
            while set(family(template)) != {template, second.pid}:  # noqa: ASYNC110  (nobody tells a stranger)
                await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_the_real_template_has_one_thread_and_its_instances_say_what_they_are(tmp_path: Path) -> None:
    driver = LocalDriver(FleetSettings(store_dir=tmp_path / "store", log_dir=tmp_path / "log"))
    try:
        first, second = await asyncio.gather(*(driver.start(spec(name, 64 << 20)) for name in ("i-1", "i-2")))
        template = parent_of(first.pid)
        assert parent_of(second.pid) == template
        assert len(os.listdir(f"/proc/{template}/task")) == 1  # noqa: PTH208
        title = command_of(second.pid)
        assert title.startswith("flatshare instance --socket ")
        assert "--name endpoint/variant" in title
        assert os.getsid(second.pid) == second.pid, "Ctrl-C in our terminal is not for it"
        kept = {os.readlink(f"/proc/{second.pid}/fd/{number}") for number in (0, 1, 2)}  # noqa: PTH115
        assert str(tmp_path / "log" / "i-2.log") in kept
        await driver.stop(first.id)
        assert "instance_stopped" in (tmp_path / "log" / "i-1.log").read_text()
        assert driver.is_alive(second.id)
    finally:
        await driver.close()
    assert (tmp_path / "log" / "template.log").read_text() == ""
    await ended(template)


def test_onnx_runtime_is_told_not_to_report_to_its_maker() -> None:
    script = "import flatshare, onnxruntime, os; print(len(os.listdir('/proc/self/task')))"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "1", "the thread that would report does not run"
