"""Workers are killed by our hand while models answer, load and leave, and by models that grow without end; everybody else is answered."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import orjson
import pytest

from flatshare.bench.machine import family
from tests.chaos.conftest import harmed, in_parallel, kill_an_instance, target, unload
from tests.chaos.witness import Caller, Victim, eventually, instance_pids, words
from tests.e2e.servers import until

pytestmark = pytest.mark.slow
_CONFIG = """backend: "python"
parameters { key: "number" value: { string_value: "NUMBER" } }
parameters { key: "phases" value: { string_value: "PHASES" } }
input [ { name: "HUNGER" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "NUMBER" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "PID" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
_CODE = """
import ctypes, json, os, pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

THIS_IS = "VERSION"
BLOCK = 64 << 20


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.number = int(parameters["number"]["string_value"])
        self.phases = pathlib.Path(parameters["phases"]["string_value"])
        self.enter("load")

    def execute(self, requests):
        self.enter("answer")
        responses = []
        for request in requests:
            hunger = pb_utils.get_input_tensor_by_name(request, "HUNGER").as_numpy()
            self.work(float(hunger[0]))
            answer = [pb_utils.Tensor("NUMBER", hunger * 0 + self.number), pb_utils.Tensor("PID", np.array([os.getpid()]))]
            responses.append(pb_utils.InferenceResponse(answer))
        return responses

    def work(self, hunger):
        pass

    def finalize(self):
        self.enter("leave")

    def enter(self, phase):
        # As long as the test holds us there, and so that it knows that we are in it.
        if (self.phases / f"hold.{phase}").exists():
            (self.phases / f"{self.number}.{phase}").touch()
            time.sleep(60)
"""
_GREEDY = """
    def work(self, hunger):
        if hunger == 0:
            return
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        while True:  # as native code does that never looks at what malloc said
            libc.memset(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(BLOCK))), 1, ctypes.c_size_t(BLOCK))
"""
_GROWING = """
    def work(self, hunger):
        blocks = []
        while hunger > 0:
            blocks.append(bytearray(b"x") * BLOCK)
"""
_SLEEPERS = tuple(f"sleeper-{number}" for number in range(3))
_TWINS = ("twin-7", "twin-8")
T = TypeVar("T")


class Hotel(Victim):
    """Encoders, which have no worker, and models with code of their own."""

    def prove(self, name: str) -> None:
        if name.endswith("/m"):
            super().prove(name)
        else:
            eventually(partial(_require_answer, self, name), within_s=60)


def _require_answer(endpoint: Victim, name: str) -> None:
    said = ask(endpoint, name)
    assert said.status == 200, said.body


@dataclass(frozen=True, slots=True)
class Said:
    """By a model with code of its own."""

    status: int
    body: bytes
    pid: int = 0
    """Of its worker."""


def write_model(catalogue: Path, name: str, *, version: str, work: str = "") -> None:
    """Of one version of code: those of one version share their workers."""
    folder, number = catalogue / name / "model" / "1", name.rpartition("-")[2]
    folder.mkdir(parents=True)
    config = _CONFIG.replace('"NUMBER" }', f'"{number}" }}').replace("PHASES", str(catalogue.parent))
    (folder.parent / "config.pbtxt").write_text(config)
    (folder / "model.py").write_text(_CODE.replace("VERSION", version) + work)


@pytest.fixture
def hotel(tmp_path: Path, models: Path) -> Iterator[Victim]:
    catalogue = tmp_path / "models"
    shutil.copytree(models, catalogue)
    for name in _SLEEPERS:
        write_model(catalogue, name, version=name)
    for name in _TWINS:
        write_model(catalogue, name, version="twins")
    write_model(catalogue, "greedy-5", version="greedy", work=_GREEDY)
    write_model(catalogue, "growing-6", version="growing", work=_GROWING)
    with harmed(tmp_path / "data", memory="640MiB") as server:
        yield Hotel(server, "hotel", catalogue)


def workers(endpoint: Victim) -> list[int]:
    return [pid for pid in family(endpoint.server.process.pid) if b"flatshare.pyworker" in words(pid)]


def kill_the_workers(endpoint: Victim) -> None:
    for pid in workers(endpoint):
        os.kill(pid, signal.SIGKILL)


def ask(endpoint: Victim, name: str, hunger: float = 0.0) -> Said:
    """A right answer comes from the right model: its name ends with its number."""
    content = {"inputs": [{"name": "HUNGER", "datatype": "FP32", "shape": [1], "data": [hunger]}]}
    status, body = Caller(endpoint).send(name, content)
    if status != 200:
        return Said(status, body)
    values = {output["name"]: output["data"] for output in orjson.loads(body)["outputs"]}
    assert values["NUMBER"] == [float(name.rpartition("-")[2])]
    return Said(status, body, values["PID"][0])


def all_are_up(endpoint: Victim, *names: str) -> dict[str, int]:
    """By name, the process of the worker that each was answered by."""
    for name in names:
        endpoint.prove(name)
    return {name: ask(endpoint, name).pid for name in names}


@contextmanager
def held_in(phase: str, endpoint: Victim, names: Sequence[str], job: Callable[[Victim, str], T]) -> Iterator[list["Future[T]"]]:
    """`job` is under way for each of the models, and its code is in this phase: nothing but a death ends that."""
    folder = endpoint.folder.parent
    hold = folder / f"hold.{phase}"
    hold.touch()
    with ThreadPoolExecutor(len(names)) as pool:
        jobs = [pool.submit(job, endpoint, name) for name in names]
        markers = [folder / f"{name.rpartition('-')[2]}.{phase}" for name in names]
        until(lambda: bool(wait(jobs, timeout=0.02, return_when=FIRST_COMPLETED).done) or all(marker.exists() for marker in markers))
        hold.unlink()
        assert not any(job.done() for job in jobs)
        yield jobs


def test_workers_killed_while_models_answer_cost_what_was_under_way_and_nobody_else(hotel: Victim) -> None:
    all_are_up(hotel, *_SLEEPERS)
    neighbours = Caller(hotel)
    with held_in("answer", hotel, _SLEEPERS, ask) as answers:
        in_parallel([partial(kill_the_workers, hotel), *(partial(neighbours.call, target(number)) for number in range(8))])
        assert [answer.result(timeout=60).status for answer in answers] == [424] * len(_SLEEPERS)
    assert set(neighbours.statuses) == {200}


def test_workers_killed_while_models_load_are_replaced(hotel: Victim) -> None:
    with held_in("load", hotel, _SLEEPERS[:2], ask) as answers:  # so many at a time
        kill_the_workers(hotel)
        assert {answer.result(timeout=60).status for answer in answers} <= {200, 424, 503}
    all_are_up(hotel, *_SLEEPERS)


@pytest.mark.parametrize("neighbours", [_TWINS[1:], ()], ids=["with-a-neighbour-in-its-worker", "alone-in-its-worker"])
def test_a_worker_killed_while_a_model_leaves_takes_the_model_along_and_its_neighbours_come_back(
    hotel: Victim, neighbours: tuple[str, ...]
) -> None:
    all_are_up(hotel, "twin-7", *neighbours, "sleeper-0")
    with held_in("leave", hotel, ["twin-7"], unload) as [departure]:
        kill_the_workers(hotel)
        assert departure.result(timeout=60) == 200
    all_are_up(hotel, *neighbours, "sleeper-0")


def test_an_instance_killed_while_a_worker_s_model_leaves_comes_back_with_all_of_them(hotel: Victim) -> None:
    all_are_up(hotel, *_TWINS)
    with held_in("leave", hotel, ["twin-7"], unload) as [departure]:
        kill_an_instance(hotel)
        with pytest.raises(ConnectionError):
            departure.result(timeout=60)


def test_a_model_that_grows_until_the_limit_of_its_worker_takes_nobody_along(hotel: Victim) -> None:
    all_are_up(hotel, *_SLEEPERS, "greedy-5")
    pids, neighbours = instance_pids(hotel), Caller(hotel)
    jobs: list[Callable[[], object]] = [partial(ask, hotel, "greedy-5", 1.0), *(partial(ask, hotel, name) for name in _SLEEPERS * 4)]
    said = in_parallel([*jobs, *(partial(neighbours.until_answered, target(number)) for number in range(8))])
    greedy, *others = [one for one in said if isinstance(one, Said)]
    assert greedy.status == 424
    assert b"SIGSEGV" in greedy.body, "malloc said no, and nobody looked"
    assert {one.status for one in others} == {200}
    assert hotel.instances()[0]["engine"]["workers_ended"] == 1
    assert instance_pids(hotel) == pids


def test_a_model_that_grows_in_python_until_the_limit_of_its_worker_hears_no_and_goes_on(hotel: Victim) -> None:
    before, pids = all_are_up(hotel, "sleeper-0", "growing-6"), instance_pids(hotel)
    said = ask(hotel, "growing-6", 1.0)
    assert said.status == 503
    assert b"it asked for more than a worker may have" in said.body
    assert all_are_up(hotel, "sleeper-0", "growing-6") == before
    assert instance_pids(hotel) == pids
