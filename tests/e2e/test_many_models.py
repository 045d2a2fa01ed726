"""1,500 models behind one endpoint, all in memory at once: no limit of the kernel is near, and each answers as itself."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from flatshare.bench.server import PlainCaller
from flatshare.wire.texts import as_vectors
from tests.checkpoints import write_checkpoint
from tests.e2e.servers import Endpoint, deploy, require_vector, serving

MODELS, CALLERS = 1_500, 6
TEXT = "the order has not arrived yet"

Vectors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel keeps for the instance."""

    maps: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Counts":
        process = Path(f"/proc/{_instance_pid(endpoint)}")
        maps = len((process / "maps").read_text().splitlines())
        return cls(maps, *(len(list((process / folder).iterdir())) for folder in ("fd", "task")))


@dataclass(frozen=True, slots=True)
class Crowd:
    endpoint: Endpoint
    vectors: Vectors
    before: Counts
    """With one model in memory."""
    data: Path


def _instance_pid(endpoint: Endpoint) -> int:
    [instance] = endpoint.instances()
    for pid in endpoint.server.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").replace("\0", " ").split(" ")
        if instance["instance"] in words:
            return pid
    raise AssertionError(f"no process of {instance['instance']}")


def _asked(endpoint: Endpoint, targets: list[str], text: str = TEXT) -> Vectors:
    """Each once, over one connection that is kept."""
    body, found = orjson.dumps({"inputs": text}), Vectors()
    with PlainCaller.to_port(endpoint.server.port) as caller:
        for target in targets:
            headers = f"X-Amzn-SageMaker-Target-Model: {target}\r\n"
            status, answer = caller.request("POST", f"/endpoints/{endpoint.name}/invocations", body, headers)
            assert status == 200, answer
            found[target] = as_vectors(orjson.loads(answer))[0]
    return found


def _asked_by_several(endpoint: Endpoint, targets: list[str], text: str = TEXT) -> Vectors:
    with ThreadPoolExecutor(CALLERS) as pool:
        parts = list(pool.map(lambda first: _asked(endpoint, targets[first::CALLERS], text), range(CALLERS)))
    return {target: vector for part in parts for target, vector in part.items()}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    folder = tmp_path_factory.mktemp("many")
    targets = [f"{seed:04d}" for seed in range(MODELS)]
    for seed, target in enumerate(targets):
        write_checkpoint(folder / target, seed=seed)
    data = tmp_path_factory.mktemp("many-data")
    with serving(data, memory="2GiB") as server:
        endpoint = deploy(server, "many", folder)
        _asked(endpoint, targets[:1])
        before = Counts.of(endpoint)
        yield Crowd(endpoint, _asked_by_several(endpoint, targets), before, data)


@pytest.mark.slow
def test_all_of_them_are_resident_and_no_limit_of_the_kernel_is_near(crowd: Crowd) -> None:
    [instance] = crowd.endpoint.instances()
    assert instance["balance"]["models"] == len(instance["models"]) == MODELS
    assert crowd.endpoint.decisions("evict") == 0
    after = Counts.of(crowd.endpoint)
    assert after.maps - crowd.before.maps <= MODELS + 200  # one each, and the heap grows by a few
    assert after.maps < int(Path("/proc/sys/vm/max_map_count").read_text()) / 8
    assert after.descriptors <= crowd.before.descriptors + 40  # connections, the catalog's of each thread, pipes of import processes
    assert after.threads <= crowd.before.threads + 8  # those that look at artifacts, and serve the import processes


@pytest.mark.slow
def test_each_answers_as_itself_also_when_several_call(crowd: Crowd) -> None:
    assert len({vector.tobytes() for vector in crowd.vectors.values()}) == MODELS
    for target in list(crowd.vectors)[::100]:
        require_vector(crowd.vectors[target], crowd.endpoint.folder / target, TEXT)
    again = _asked_by_several(crowd.endpoint, sorted(crowd.vectors)[:300])
    for target, vector in again.items():
        np.testing.assert_allclose(vector, crowd.vectors[target], atol=1e-6)


@pytest.mark.slow
def test_the_commands_that_look_into_a_server_bear_so_many(crowd: Crowd) -> None:
    server, data = crowd.endpoint.server, crowd.data
    explained = orjson.loads(_said("explain", "0777", "--endpoint", "many", "--url", server.url, "--json"))
    assert explained["state"] == "resident"
    assert len(orjson.loads(_said("models", "list", "--data", str(data), "--json"))) == MODELS
    usage = orjson.loads(_said("models", "du", "--data", str(data), "--json"))
    assert usage["models"] == MODELS
    assert len(orjson.loads(_said("top", "--url", server.url, "--json"))["instances"][0]["models"]) == MODELS


def _said(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "flatshare", *words], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
