"""The commands of the guide run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.servers import free_port

GUIDE = Path(__file__).parents[2] / "docs/bring-your-triton-packages.md"


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    flatshare = tmp_path / "bin" / "flatshare"
    flatshare.parent.mkdir()
    flatshare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flatshare "$@"\n')
    flatshare.chmod(0o755)
    script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + "".join(blocks).replace("8090", str(free_port()))
    environment = os.environ | {"PATH": f"{flatshare.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert '"data":[2.0,4.0,6.0]' in done.stdout
