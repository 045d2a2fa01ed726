"""`flatshare env`: lines that a shell takes as they are."""

import subprocess

import pytest

from flatshare.client.aws import SERVICES
from tests.cli.conftest import Flatshare

URL = "http://127.0.0.1:9999"


def test_sh_takes_the_lines_as_they_are(flatshare: Flatshare) -> None:
    lines = flatshare("env", "--url", URL).out
    script = f'{lines}\nsh -c "env"'
    printed = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True, text=True, env={"PATH": "/usr/bin:/bin"}).stdout
    for name in SERVICES.values():
        assert f"{name}={URL}\n" in printed


@pytest.mark.parametrize(("shell", "form"), [("sh", "export {}={}"), ("fish", "set -gx {} {}"), ("dotenv", "{}={}")])
def test_each_shell_has_its_syntax(flatshare: Flatshare, shell: str, form: str) -> None:
    assert flatshare("env", "--shell", shell, "--url", URL).out.splitlines() == [form.format(name, URL) for name in SERVICES.values()]


def test_s3_and_sts_keep_their_own_addresses(flatshare: Flatshare) -> None:
    run = flatshare("env", "--json", "--url", URL)
    assert run.json == dict.fromkeys(SERVICES.values(), URL)
    assert "S3" not in run.out
    assert "AWS_ENDPOINT_URL=" not in flatshare("env").out


def test_the_address_may_come_from_the_environment(flatshare: Flatshare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATSHARE_URL", URL)
    assert set(flatshare("env", "--json").json.values()) == {URL}


def test_what_a_shell_would_interpret_is_quoted(flatshare: Flatshare) -> None:
    assert "'http://x/$(id)'" in flatshare("env", "--url", "http://x/$(id)").out
