"""Help for every command, and sentences instead of tracebacks."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from flatshare.cli.main import commands
from tests.cli.conftest import Flatshare


def _all(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _all(child, (*path, name))


COMMANDS = list(_all(commands))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(flatshare: Flatshare, path: tuple[str, ...], flag: str) -> None:
    run = flatshare(*path, flag)
    assert run.status == 0
    assert run.err == ""
    assert f"\n    flatshare {path[0] if path else ''}".rstrip() in run.out.split("Options:")[0]


def test_the_version_is_printed(flatshare: Flatshare) -> None:
    from flatshare import __version__

    assert flatshare("--version").said == f"flatshare, version {__version__}"


def test_an_unknown_command_is_named(flatshare: Flatshare) -> None:
    run = flatshare("serv")
    assert run.status == 2
    assert "serv" in run.err


@pytest.fixture
def nobodys_url() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to while the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


CALLS = {
    "top --once": ("top", "--once"),
    "top --json": ("top", "--json"),
    "top": ("top",),
    "invoke": ("invoke", "embeddings", "acme/query", "hello"),
    "deploy": ("deploy", ".", "--endpoint", "embeddings"),
}


@pytest.mark.parametrize("call", CALLS)
def test_without_a_server_a_command_says_how_to_start_one(flatshare: Flatshare, nobodys_url: str, call: str) -> None:
    run = flatshare(*CALLS[call], "--url", nobodys_url)
    assert run.status == 1
    assert run.out == ""
    assert nobodys_url in run.said
    assert "flatshare serve" in run.said


@pytest.mark.parametrize("call", CALLS)
def test_an_address_without_a_scheme_is_refused(flatshare: Flatshare, call: str) -> None:
    run = flatshare(*CALLS[call], "--url", "localhost:8080")
    assert run.status == 2
    assert "write it as http://host:port" in run.said


@pytest.mark.slow
def test_as_a_program_it_prints_a_sentence_and_no_traceback(nobodys_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flatshare", "top", "--once", "--url", nobodys_url]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 1
    assert "start one with 'flatshare serve'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--memory", "12XB"), "12XB"),
        (("--port", "70000"), "70000"),
        (("--host", "0.0.0.0"), "--insecure"),
        (("--host", "example.org"), "--insecure"),
        (("--tls-cert", __file__), "--tls-key"),
        (("--tls-key", __file__), "--tls-cert"),
        (("--auth", "basic"), "sigv4"),
    ],
)
def test_serve_refuses_what_it_cannot_or_should_not_do(flatshare: Flatshare, arguments: tuple[str, ...], sentence: str) -> None:
    run = flatshare("serve", *arguments)
    assert run.status == 2
    assert sentence in run.said


def test_the_commands_of_an_instance_do_not_carry_the_aws_client() -> None:
    """Their memory is counted for each instance."""
    code = "import sys, flatshare.cli.main, flatshare.cli.instance, flatshare.instance.process; print('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout.strip() == "False"


def test_each_command_names_a_module_that_exists() -> None:
    from flatshare.cli.main import _ATTRIBUTES, _COMMANDS

    for name, module in _COMMANDS.items():
        assert isinstance(getattr(import_module(module), _ATTRIBUTES.get(name, name)), click.Command)
