"""docs/serve-your-own-checkpoint.md: everything on the page is run, in its order, as a reader would."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.servers import clean_environment, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PAGE = (Path(__file__).parents[2] / "docs/serve-your-own-checkpoint.md").read_text()
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


def run(*words: str, folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *words], cwd=folder, env=clean_environment(KEYS), capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_reader_can_follow_the_page(tmp_path: Path) -> None:
    said: list[str] = []
    with serving(tmp_path / "data") as server:
        for language, block in BLOCKS:
            if language == "python":
                said.append(run("-c", block.replace("http://127.0.0.1:8080", server.url), folder=tmp_path))
                continue
            for line in block.splitlines():
                program, *words = shlex.split(line)
                assert program == "flatshare"
                if words[0] != "serve":  # the test's own server is on a free port
                    said.append(run("-m", "flatshare", *words, "--url", server.url, folder=tmp_path))
    text = "\n".join(said)
    assert re.search(r"refund \d\.\d{4}", text)
    assert re.search(r"^\w+\s+12-\d+\s+(O|ITEM) \d\.\d{4}$", text, re.MULTILINE)  # the piece at which "parcel" begins
    assert re.search(r"\d\.\d{4}  passage 1", text)
    assert '"predictions":[[{"label":' in text
    assert len(BLOCKS) == 4
