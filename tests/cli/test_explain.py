"""`flatshare explain`, the file of settings, and deadlines, through a real server."""

from pathlib import Path

import orjson
import pytest

from flatshare.bench.server import PlainCaller, RunningServer
from tests.cli.conftest import Flatshare
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import Endpoint, deploy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def explained(cli_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    folder = tmp_path_factory.mktemp("explained")
    write_checkpoint(folder / "acme/query", 31)
    write_checkpoint(folder / "acme/idle", 32)
    endpoint = deploy(cli_server, "explained", folder)
    endpoint.require_right("acme/query")
    return endpoint


def test_of_a_model_in_memory_it_says_whose_it_is_what_it_is_worth_and_why_it_came(at_server: Flatshare, explained: Endpoint) -> None:
    run = at_server("explain", "acme/query", "--endpoint", explained.name)
    assert run.status == 0
    for word in ("acme/query", "resident", "tenant", "acme", "new of", "ms of waiting saved per second"):
        assert word in run.said


def test_of_an_absent_model_it_says_what_a_load_would_do_and_does_not_do_it(at_server: Flatshare, explained: Endpoint) -> None:
    said = at_server("explain", "acme/idle", "--endpoint", explained.name, "--json").json
    assert (said["state"], said["tenant"], said["dry_run"]["verdict"]) == ("absent", "acme", "import first")
    assert said["dry_run"]["needs_bytes"] > sum(path.stat().st_size for path in (explained.folder / "acme/idle").rglob("*.safetensors"))
    assert "then admit" in (plain := at_server("explain", "acme/idle", "--endpoint", explained.name).said)
    assert "needs about 1." in plain
    assert not [model for model in explained.instances()[0]["models"] if model["uri"].endswith("/idle")]


def test_of_nothing_it_says_what_could_not_be_found(at_server: Flatshare, explained: Endpoint) -> None:
    assert "Nothing lies at" in at_server("explain", "acme/none", "--endpoint", explained.name).said
    run = at_server("explain", "acme/query", "--endpoint", "nowhere")
    assert run.status == 1
    assert "nowhere" in run.said


def test_a_key_that_is_not_known_stops_the_start(flatshare: Flatshare, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[memory]\nttl = 5\n")
    run = flatshare("serve", "--settings", "settings.toml")
    assert run.status == 2
    assert "has no key 'ttl': did you mean 'ttl_s'?" in run.said


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_says_when_to_try_again(explained: Endpoint) -> None:
    path, body = f"/endpoints/{explained.name}/invocations", orjson.dumps({"inputs": ["hello " * 50] * 500})
    headers = "X-Amzn-SageMaker-Target-Model: acme/query\r\nX-Flatshare-Deadline-Ms: {}\r\n"
    with PlainCaller.to_port(explained.server.port) as caller:
        status, said = caller.request("POST", path, body, headers.format("0.5"))
        assert (status, orjson.loads(said)["ErrorCode"]) == (503, "ServiceUnavailable")
        assert b"may take" in said
        assert caller.request("POST", path, body, headers.format("60000"))[0] == 200
        assert b"must be milliseconds" in caller.request("POST", path, body, headers.format("soon"))[1]
