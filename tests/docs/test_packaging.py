"""The Containerfile and the systemd unit, as far as they can be tried without an engine and without root."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from flatshare.cli.main import commands

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "packaging/Containerfile").read_text()
UNIT = (ROOT / "packaging/flatshare.service").read_text()
_INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", CONTAINERFILE).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def _require_options(arguments: list[str]) -> None:
    """The command line is one that we take."""
    assert isinstance(commands, click.Group)
    with commands.make_context("flatshare", list(arguments[:1]), resilient_parsing=True) as context:
        command = commands.get_command(context, arguments[0])
        assert command is not None
        with command.make_context(arguments[0], list(arguments[1:]), parent=context) as parsed:
            assert parsed.params["auth"] == "sigv4"
            assert parsed.params["json_logs"] is True


def test_the_container_has_known_instructions_and_copies_what_is_there() -> None:
    assert {name for name, _ in instructions()} <= _INSTRUCTIONS
    copied = [words for name, rest in instructions() if name == "COPY" for words in [rest.split()] if not rest.startswith("--from")]
    assert [source for words in copied for source in words[:-1] if not (ROOT / source).exists()] == []


def test_the_container_runs_without_root_and_with_authentication() -> None:
    named = dict(instructions())
    user, _, group = named["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert named["STOPSIGNAL"] == "SIGTERM"
    assert named["ENTRYPOINT"] == '["flatshare"]'
    _require_options(json.loads(named["CMD"]))


def test_the_unit_starts_a_command_line_that_we_take() -> None:
    [start] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    words = shlex.split(start.replace("${STATE_DIRECTORY}", "/var/lib/flatshare").replace(" $FLATSHARE_OPTIONS", ""))
    assert words[0].endswith("/flatshare")
    _require_options(words[1:])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "flatshare.service"
    path.write_text(UNIT.replace("/opt/flatshare/bin/flatshare", "/bin/true"))  # it looks whether the program is there
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
