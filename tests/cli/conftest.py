"""The command line as a person meets it: what is printed, and the exit status."""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from flatshare.bench.server import RunningServer
from flatshare.cli.main import main
from flatshare.telemetry import log
from tests.e2e.servers import serving


@dataclass(frozen=True, slots=True)
class Run:
    """One finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)

    @property
    def said(self) -> str:
        """What was printed for people, its line breaks taken out: they follow the terminal's width."""
        return " ".join((self.out + self.err).split())


Flatshare = Callable[..., Run]


@pytest.fixture
def flatshare(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Flatshare:
    """Run `flatshare ARGUMENTS` in this process and in an empty folder. An exception that is not turned into a sentence fails the test."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FLATSHARE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(log, "configure", lambda **_: None)  # it is of the whole process, for good: later tests would log to our stream
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"") -> Run:
        monkeypatch.setattr(sys, "argv", ["flatshare", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        printed = capfd.readouterr()
        return Run(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def cli_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def cli_server(cli_data: Path) -> Iterator[RunningServer]:
    """A server for the commands, over `cli_data`."""
    with serving(cli_data) as running:
        yield running


@pytest.fixture
def at_server(flatshare: Flatshare, cli_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Flatshare:
    """`flatshare`, told by the environment where the server is."""

    def run(*arguments: str, stdin: bytes = b"") -> Run:
        monkeypatch.setenv("FLATSHARE_URL", cli_server.url)
        return flatshare(*arguments, stdin=stdin)

    return run
