import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatshare.control.drivers.sockets import SocketFolder

_LEFT_BEHIND = """
import os, signal
from flatshare.control.drivers.sockets import SocketFolder
print(SocketFolder().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.mark.slow
def test_what_a_killed_server_left_goes_and_what_lives_stays(tmp_path: Path) -> None:
    (tmp_path / "flatshare-run-of-somebody-else").mkdir()
    killed = subprocess.run([sys.executable, "-c", _LEFT_BEHIND], stdout=subprocess.PIPE, check=False, timeout=30, text=True)
    left = Path(killed.stdout.strip())
    assert (killed.returncode, left.exists()) == (-signal.SIGKILL, True)
    first = SocketFolder()
    assert not left.exists()
    second = SocketFolder()
    assert (first.path.exists(), second.path.exists()) == (True, True)
    assert first.path.stat().st_mode & 0o777 == 0o700
    second.remove()
    first.remove()
    assert [path.name for path in tmp_path.glob("flatshare-run-*")] == ["flatshare-run-of-somebody-else"]
