"""The control plane is killed at every step of every operation: started again, it ends where it would have ended."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import wait_for_ends

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("operation", "config", "running", "must_reach"),
    [
        ("create", "c", 2, {"transaction about to commit", "start e/v", "started e/v", "publish", "published"}),
        ("update", "next", 2, {"transaction committed", "start e/w", "started e/w", "publish", "stop", "stopped", "set memory"}),
        ("update_to_what_fails", "c", 2, {"transaction begun", "start e/bad", "stop", "stopped"}),
        ("canary", "next", 2, {"transaction committed", "started e/w", "publish", "stop", "stopped"}),
        ("linear_to_what_fails", "c", 2, {"transaction begun", "start e/bad", "stop", "stopped"}),
        ("roll", "next", 2, {"transaction committed", "started e/w", "publish", "stop", "stopped"}),
        ("scale", "c", 3, {"transaction begun", "started e/v", "published"}),
        ("delete", None, 0, {"transaction committed", "stop", "stopped", "published"}),
    ],
)
def test_killed_at_any_step_it_comes_back_to_the_same_state(
    tmp_path: Path, operation: str, config: str | None, running: int, must_reach: set[str]
) -> None:
    whole, *killed, last = _told(tmp_path, operation)
    steps: list[str] = whole["reached"]
    assert must_reach <= set(steps)
    assert len(killed) > len(steps) // 2, "the number of steps varies with the order of events, but not so much"
    assert not last["was_killed"]
    expected = whole["report"]
    assert (expected["endpoint"] and expected["endpoint"]["EndpointConfigName"], expected["running"]) == (config, running)
    for told in killed:
        assert told["was_killed"]
        assert told["alone"] in {None, "c", config}, "begun, it went on to the end or back by itself"
        assert told["report"] == expected, f"killed at step {told['step']}"
    orphans = [int(pid) for told in (whole, *killed, last) for pid in told["pids"]]
    assert wait_for_ends(orphans, within_s=20.0) == []


def _told(folder: Path, operation: str) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.control.kill_steps", str(folder), operation]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=280, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
