"""`make demo KEEP=1`: right answers, figures as JSON, and three commands to try, which are run as they are printed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from tests.e2e.servers import clean_environment, wait_for_ends

ROOT = Path(__file__).parents[2]
STEPS = ("AWS CLI", "curl", "Python", "watch it, stop it, clean up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "work"


@pytest.fixture(scope="module")
def printed(folder: Path) -> Iterator[str]:
    """What the demo says, its server still up."""
    command = [sys.executable, "-m", "flatshare", "bench", "demo", "--tenants", "4", "--quick", "--keep", "--work", str(folder)]
    with_json = [*command, "--json", str(folder.with_suffix(".json"))]
    ended = subprocess.run(with_json, env=clean_environment(), capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    yield ended.stdout
    with suppress(ProcessLookupError):
        os.kill(_pid(ended.stdout), signal.SIGTERM)


def _pid(said: str) -> int:
    found = re.search(r"^kill (\d+);", said, re.MULTILINE)
    assert found is not None, said
    return int(found[1])


def _commands(said: str) -> dict[str, str]:
    """By the headings that they are printed under."""
    heading, *blocks = re.split(r"^# (.+)$", said[said.index("The server is up at") :], flags=re.MULTILINE)
    assert heading.startswith("The server is up at http://127.0.0.1:")
    return {name.partition(" (")[0]: block for name, block in zip(blocks[::2], blocks[1::2], strict=True)}


def _pasted(command: str) -> str:
    programs = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-ec", command], env=clean_environment(programs), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_commands_that_the_demo_prints_answer_as_they_stand_there_and_the_last_ends_it(printed: str, folder: Path) -> None:
    commands = _commands(printed)
    assert tuple(commands) == STEPS
    numbers = {name: re.search(r"-?0\.\d{4,}", _pasted(commands[name])) for name in STEPS[:3]}
    assert all(numbers.values()), "each of them prints an embedding"
    assert len({found[0][:7] for found in numbers.values() if found}) == 1, "of the same model, for the same text"

    watch, stop = commands[STEPS[3]].strip().splitlines()
    assert '"instances"' in _pasted(f"{watch} --json")
    descriptor = os.pidfd_open(_pid(printed))
    _pasted(stop)
    os.close(descriptor)
    assert wait_for_ends([_pid(printed)], within_s=40) == []
    assert not folder.exists()


@pytest.mark.slow
def test_its_figures_are_written_as_json(printed: str, folder: Path) -> None:
    written = orjson.loads(folder.with_suffix(".json").read_bytes())
    assert written["machine"]["cores"]
    assert written["results"]["models"] == 8
    assert written["results"]["checked_answers"] > 60
    assert written["results"]["largest_difference"] < 1e-5
    assert written["results"]["cold_30_s"] > 0
    assert "8 target models" in printed


def test_make_runs_it() -> None:
    planned = subprocess.run(["make", "--dry-run", "demo", "KEEP=1"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert "/flatshare bench demo --keep\n" in planned.stdout
