"""docs/deploying.md, executed as it is printed: every command in order, its output compared, every Python block run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flatshare.bench.server import RunningServer
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import clean_environment, serving
from tests.package.tuned import write_trunk_checkpoint, write_tuned
from tests.release.moto_server import running_moto

PAGE = Path(__file__).parents[2] / "docs/deploying.md"
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
def mock_aws() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the reader stands."""
    for seed, name in enumerate(("may/query", "may/document", "june/query", "june/document")):
        write_checkpoint(tmp_path / name, 9000 + seed)
    base = write_trunk_checkpoint(tmp_path / "base")
    for seed, name in enumerate(("faq", "news")):
        write_tuned(tmp_path / "tuned" / name, base, seed)
    (tmp_path / "models.csv").write_text("model,source\nacme/faq,tuned/faq\nacme/news,tuned/news\n")
    return tmp_path


def _commands(block: str) -> list[tuple[str, str]]:
    """Each command with the output that the page prints below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _pattern(printed: str) -> str:
    """Line ends follow the terminal's width, so any space is any space."""
    return r"\s+".join(re.escape(word).replace("…", ".*?") for word in printed.split())


def _run(command: str, printed: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert re.fullmatch(rf"\s*{_pattern(printed)}\s*", done.stdout, re.DOTALL), (
        f"$ {command}\n{done.stdout}\nis not what the page prints:\n{printed}"
    )


@pytest.mark.timeout(300)
def test_the_walk_through_is_what_happens(
    server: RunningServer,
    folder: Path,
    mock_aws: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = {"FLATSHARE_URL": server.url, "COLUMNS": "200", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    aws = {"AWS_ENDPOINT_URL": mock_aws, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = clean_environment(ours | {"AWS_EC2_METADATA_DISABLED": "true"})
    for kind, block in BLOCKS:
        if "aws" in block:
            environment |= aws
        for name in ours.keys() | aws.keys():
            if name in environment:
                monkeypatch.setenv(name, environment[name])
        if kind == "python":
            names: dict[str, Any] = {}
            exec(block, names)  # our own page
        else:
            for command, printed in _commands(block):
                _run(command, printed, folder, environment)


def test_the_page_shows_every_step() -> None:
    commands = " ".join(command for kind, block in BLOCKS if kind == "console" for command, _ in _commands(block))
    for step in (
        "package",
        "deploy",
        "--dry-run",
        "--canary",
        "promote",
        "rollback",
        "retire",
        "history",
        "--trunk",
        "--batch",
        "--target aws",
    ):
        assert step in commands
