"""What an operator finds in the logs of a request that went wrong: one line of JSON per event, the answer's request id on each."""

import http.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from flatshare.bench.server import RunningServer
from tests.chaos.conftest import harmed
from tests.contract.packages import config, write_model
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import deploy

pytestmark = pytest.mark.slow
RAISES = """
    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            raise ValueError("no such order")
"""


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer, and what the logs say of it."""

    status: int
    server: list[dict[str, Any]]
    instances: list[dict[str, Any]]


def failed(server: RunningServer, data: Path, target: str, body: object) -> Failed:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": target}
    connection.request("POST", "/endpoints/logged/invocations", orjson.dumps(body), headers)
    answer = connection.getresponse()
    request_id, _ = answer.headers["x-amzn-RequestId"], answer.read()
    connection.close()
    return Failed(answer.status, _lines([data / "server.log"], request_id), _lines(_instance_logs(data), request_id))


def _instance_logs(data: Path) -> list[Path]:
    return [path for path in (data / "log").glob("*.log") if path.name != "template.log"]


def _lines(logs: list[Path], request_id: str) -> list[dict[str, Any]]:
    """Those of this request."""
    lines = [line for path in logs for line in path.read_bytes().splitlines() if request_id.encode() in line]
    events: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
    assert [event for event in events if event["request_id"] != request_id] == []
    return events


def test_each_line_about_a_request_has_the_id_that_its_answer_has(tmp_path: Path) -> None:
    folder, data = tmp_path / "models", tmp_path / "data"
    for name in ("bug", "poison"):
        write_checkpoint(folder / name, 1)
    write_model(folder / "raises", RAISES, config(more='backend: "python" max_batch_size: 4'))
    with harmed(data, options=("--json-logs",)) as server:
        deploy(server, "logged", folder)
        bug = failed(server, data, "bug", {"inputs": "RAISE"})
        values = {"inputs": [{"name": "A", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
        raised = [failed(server, data, "raises", values) for _ in range(2)]
        for path in [data / "server.log", *_instance_logs(data)]:  # whole, before one is killed: Python says in its own words who died
            events = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            assert [event for event in events if not {"timestamp", "level", "event", "component"} <= set(event)] == []
        poison = failed(server, data, "poison", {"inputs": "KILL"})
    [error] = [line for line in bug.instances if line["event"] == "request_failed"]
    assert (bug.status, error["level"], "LookupError: a bug of the engine" in error["exception"]) == (424, "error", True)
    for answer in raised:  # also the second, whose model was there
        [warning] = [line for line in answer.instances if line["event"] == "model_raised"]
        assert (answer.status, warning["level"], "ValueError: no such order" in warning["traceback"]) == (424, "warning", True)
    assert {line["event"] for line in poison.server} == {"instance_gone"}
    assert "model_load" in {line["event"] for line in poison.instances}
    assert (poison.status, {line["level"] for line in poison.server}) == (503, {"warning"})
