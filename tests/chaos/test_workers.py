"""Workers are killed by our hand, while models answer and while they load: every request hears something, and all is well afterwards."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import orjson
import pytest

from flatshare.bench.machine import family
from flatshare.bench.server import PlainCaller
from tests.chaos.conftest import Caller, harmed, in_parallel, target
from tests.e2e.servers import Endpoint, deploy, until

pytestmark = pytest.mark.slow
_CONFIG = """backend: "python"
input [ { name: "SECONDS" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "ANSWER" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
_CODE = """
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(0.5)
        self.number = NUMBER

    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
            time.sleep(float(seconds[0]))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("ANSWER", seconds * 0 + self.number)]))
        return responses
"""
SLEEPERS = 3


@pytest.fixture
def hotel(tmp_path: Path, models: Path) -> Iterator[Endpoint]:
    """Encoders, which have no worker, and models with code of their own."""
    shutil.copytree(models, tmp_path / "models")
    for number in range(SLEEPERS):
        version = tmp_path / f"models/sleeper-{number}/sleeper/1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_CONFIG)
        (version / "model.py").write_text(_CODE.replace("NUMBER", str(number)))
    with harmed(tmp_path / "data") as server:
        yield deploy(server, "hotel", tmp_path / "models")


def workers(endpoint: Endpoint) -> list[int]:
    found = []
    for pid in family(endpoint.server.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if b"flatshare.pyworker" in words:
            found.append(pid)
    return found


def kill_the_workers(endpoint: Endpoint) -> None:
    for pid in workers(endpoint):
        os.kill(pid, signal.SIGKILL)


def ask(endpoint: Endpoint, number: int, seconds: float) -> int:
    """The status; a right answer comes from the right model."""
    body = {"inputs": [{"name": "SECONDS", "datatype": "FP32", "shape": [1], "data": [seconds]}]}
    with PlainCaller.to_port(endpoint.server.port) as caller:
        path, header = f"/endpoints/{endpoint.name}/invocations", f"X-Amzn-SageMaker-Target-Model: sleeper-{number}\r\n"
        status, answer = caller.request("POST", path, orjson.dumps(body), header)
    if status == 200:
        assert orjson.loads(answer)["outputs"][0]["data"] == [number]
    return status


def all_answer_again(endpoint: Endpoint) -> None:
    for number in range(SLEEPERS):
        until(partial(_answers, endpoint, number), within_s=60)


def _answers(endpoint: Endpoint, number: int) -> bool:
    return ask(endpoint, number, 0) == 200


def test_workers_killed_while_models_answer_cost_what_was_under_way_and_nobody_else(hotel: Endpoint) -> None:
    all_answer_again(hotel)
    neighbours = Caller(hotel)
    jobs: list[Callable[[], object]] = [partial(ask, hotel, number, 1.0) for number in range(SLEEPERS)]
    jobs += [partial(_in_the_middle, hotel), *(partial(neighbours.call, target(number)) for number in range(8))]
    statuses = in_parallel(jobs)
    assert set(neighbours.statuses) == {200}
    assert 424 in statuses[:SLEEPERS]
    assert set(statuses[:SLEEPERS]) <= {200, 424}
    all_answer_again(hotel)


def test_workers_killed_while_models_load_are_replaced(hotel: Endpoint) -> None:
    jobs: list[Callable[[], object]] = [partial(ask, hotel, number, 0.0) for number in range(SLEEPERS)]
    statuses = in_parallel([*jobs, partial(_in_the_middle, hotel)])
    assert set(statuses[:SLEEPERS]) <= {200, 424, 503}
    all_answer_again(hotel)


def _in_the_middle(endpoint: Endpoint) -> None:
    until(lambda: bool(workers(endpoint)), within_s=30)
    kill_the_workers(endpoint)
