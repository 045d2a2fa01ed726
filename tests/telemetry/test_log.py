"""Lines of the log are for whoever reads them, and never a reason to fail."""

import subprocess
import sys

_PROGRAM = """
from flatshare.telemetry.log import configure, get_logger
configure(json=True)
for _ in range(3):
    get_logger("test").error("the_disk_is_full")
print("went on")
"""


def test_a_full_disk_under_the_log_harms_nobody() -> None:
    """/dev/full answers every write as a full disk does."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123  # a device, not a path
        done = subprocess.run([sys.executable, "-c", _PROGRAM], check=False, stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"went on\n"


def test_a_closed_stream_under_the_log_harms_nobody() -> None:
    closed = _PROGRAM.replace("for _ in", "import sys; sys.stderr.close()\nfor _ in")
    done = subprocess.run([sys.executable, "-c", closed], check=False, capture_output=True, timeout=60)
    assert done.stdout == b"went on\n"
