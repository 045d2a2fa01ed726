"""Starts, stops and deaths: what was deployed stays, who is under way is answered, and no process is left behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import pytest

from flatshare.bench.machine import family
from flatshare.bench.server import PlainCaller, RunningServer
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import Endpoint, deploy, serving, until, wait_for_ends

pytestmark = pytest.mark.slow
MODELS = 4
LONG = orjson.dumps({"inputs": [f"{TEXT} " * 12] * 4096})  # some seconds of work for one instance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for seed in range(MODELS):
        write_checkpoint(place / f"m{seed}", 800 + seed)
    return place


def _again(server: RunningServer, endpoint: Endpoint) -> Endpoint:
    """The endpoint of an earlier server, at this one."""
    server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint.name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
    return Endpoint(server, endpoint.name, endpoint.folder)


def test_a_restart_keeps_endpoints_and_imported_models(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        endpoint = deploy(first, "kept", folder)
        digests = [endpoint.require_right(f"m{seed}").digest for seed in range(MODELS)]
        created = first.sagemaker.describe_endpoint(EndpointName="kept")["CreationTime"]
    packs = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.pack")}
    with serving(tmp_path) as second:
        endpoint = _again(second, endpoint)
        assert second.sagemaker.describe_endpoint(EndpointName="kept")["CreationTime"] == created
        for seed in range(MODELS):
            answer = endpoint.require_right(f"m{seed}")
            assert answer.digest == digests[seed]
        assert len(second.pids()) == 3, "beside server, template and instance an import process was started, though nothing was to import"
    assert packs
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.pack")} == packs


@contextmanager
def _load_on(endpoint: Endpoint, callers: int = 4) -> Iterator[list[int]]:
    """Callers that ask without a pause, by plain HTTP so that nothing is retried; the statuses that they got."""
    statuses: list[int] = []
    is_over = threading.Event()

    def call(index: int) -> None:
        target = f"m{index % MODELS}"
        path, body = f"/endpoints/{endpoint.name}/invocations", orjson.dumps({"inputs": [TEXT] * 64})
        with PlainCaller.to_port(endpoint.server.port) as caller:
            while not is_over.is_set():
                status, _ = caller.request("POST", path, body, f"X-Amzn-SageMaker-Target-Model: {target}\r\n")
                statuses.append(status)

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call, index) for index in range(callers)]
        try:
            until(lambda: len(statuses) > 50 or any(future.done() for future in futures))
            yield statuses
        finally:
            is_over.set()
        for future in futures:
            future.result()


def _instance_pids(endpoint: Endpoint) -> dict[str, int]:
    """Instances in service with their process: the socket is named by its id."""
    ids = {instance["instance"] for instance in endpoint.instances() if "balance" in instance}
    found = {}
    for pid in family(endpoint.server.process.pid)[1:]:
        words = []
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split(" ")
        if "--id" in words and words[words.index("--id") + 1] in ids:
            found[words[words.index("--id") + 1]] = pid
    return found


def _kill_one(endpoint: Endpoint) -> str:
    instance, pid = next(iter(_instance_pids(endpoint).items()))
    os.kill(pid, signal.SIGKILL)
    return instance


def test_with_two_instances_the_death_of_one_costs_no_request(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "pair", folder, instance_count=2)
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")
        with _load_on(endpoint) as statuses:
            dead = _kill_one(endpoint)
            until(lambda: len(set(_instance_pids(endpoint)) - {dead}) == 2)
        assert set(statuses) == {200}
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")


def test_a_restarted_instance_has_its_models_before_its_first_call(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "warm", folder)
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")
        [(ended, pid)] = _instance_pids(endpoint).items()
        os.kill(pid, signal.SIGTERM)
        until(lambda: bool(set(_instance_pids(endpoint)) - {ended}))
        assert [seed for seed in range(MODELS) if endpoint.require_right(f"m{seed}").is_cold] == []


def test_with_one_instance_callers_wait_for_its_successor(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "single", folder)
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")
        with _load_on(endpoint) as statuses:
            dead = _kill_one(endpoint)
            until(lambda: bool(set(_instance_pids(endpoint)) - {dead}))
            answered = len(statuses)
            until(lambda: 200 in statuses[answered:])
        assert set(statuses) == {200}
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")


def test_scaling_and_updating_an_endpoint_cost_no_request(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "updated", folder)
        for seed in range(MODELS):
            endpoint.require_right(f"m{seed}")
        first = set(_instance_pids(endpoint))
        with _load_on(endpoint) as statuses:
            for count in (2, 1):
                change = {"VariantName": "AllTraffic", "DesiredInstanceCount": count}
                server.sagemaker.update_endpoint_weights_and_capacities(EndpointName="updated", DesiredWeightsAndCapacities=[change])
                _again(server, endpoint)
            variant = {"VariantName": "AllTraffic", "ModelName": "updated", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
            server.sagemaker.create_endpoint_config(EndpointConfigName="green", ProductionVariants=[variant])
            server.sagemaker.update_endpoint(EndpointName="updated", EndpointConfigName="green")
            _again(server, endpoint)
            answered = len(statuses)
            until(lambda: len(statuses) > answered + 50)
        assert set(statuses) == {200}
        assert not first & set(_instance_pids(endpoint))


def test_an_import_process_that_is_killed_fails_one_call_and_the_next_imports_anew(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models/large", 901, rows=1_000_000)
    with serving(tmp_path / "data") as server, ThreadPoolExecutor(1) as pool:
        endpoint = deploy(server, "importing", tmp_path / "models")
        outcome = pool.submit(lambda: endpoint.failure(TargetModel="large"))
        until(lambda: outcome.done() or bool(_importers(server)))
        for pid in _importers(server):
            os.kill(pid, signal.SIGKILL)
        failure = outcome.result(timeout=30)
        assert (failure.code, failure.status) == ("InternalDependencyException", 530)
        assert "died" in failure.message
        endpoint.require_right("large")


def _importers(server: RunningServer) -> list[int]:
    """The process is multiprocessing's, which says so in its command."""
    found = []
    for pid in server.pids():
        with suppress(OSError):  # it ended while we looked
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_sigkill_of_the_server_leaves_no_process_behind(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "orphans", folder, instance_count=2)
        endpoint.require_right("m0")
        pids = server.pids()
        assert len(pids) >= 3
        server.process.kill()
        assert wait_for_ends(pids, within_s=10) == []


def _long_request(endpoint: Endpoint, pool: ThreadPoolExecutor) -> Future[int]:
    """A request that takes seconds; returns once an instance works on it."""

    def call() -> int:
        with PlainCaller.to_port(endpoint.server.port) as caller:
            header = "X-Amzn-SageMaker-Target-Model: m0\r\n"
            return caller.request("POST", f"/endpoints/{endpoint.name}/invocations", LONG, header)[0]

    future = pool.submit(call)
    until(lambda: future.done() or any(instance.get("in_flight") for instance in endpoint.instances()))
    assert not future.done(), "the request was over before the test began: make it longer"
    return future


def test_sigterm_answers_what_is_under_way_and_exits_with_0(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        endpoint = deploy(server, "drained", folder)
        endpoint.require_right("m0")
        pids = server.pids()
        under_way = _long_request(endpoint, pool)
        server.process.terminate()
        assert under_way.result(timeout=30) == 200
        assert server.process.wait(timeout=30) == 0
        assert wait_for_ends(pids, within_s=5) == []


def test_ctrl_c_stops_an_idle_server_at_once_although_a_client_keeps_its_connection(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        endpoint = deploy(server, "idle", folder)
        endpoint.require_right("m0")
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - started_s < 5


def test_sigkill_in_the_middle_of_an_import_leaves_a_store_that_the_next_start_repairs(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(folder / "large", 900, rows=1_000_000)  # 128 MB: an import of some tenths of a second
    with serving(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        endpoint = deploy(server, "killed", folder)
        endpoint.require_right("m0")
        outcome = pool.submit(lambda: _status_or_none(endpoint, "large"))
        until(lambda: outcome.done() or _written(tmp_path / "store") > 2**24)
        pids = server.pids()
        for pid in pids:  # the importer and the instance too: nobody may clean up
            os.kill(pid, signal.SIGKILL)
        assert wait_for_ends(pids, within_s=10) == []
        assert outcome.result(timeout=10) is None, "the import was over before the test began: make it larger"
    assert _leftovers(tmp_path / "store")
    with serving(tmp_path) as server:
        assert _leftovers(tmp_path / "store") == []
        endpoint = _again(server, endpoint)
        for target in ("m0", "large", "m1"):
            endpoint.require_right(target)
    assert _leftovers(tmp_path / "store") == []


def _status_or_none(endpoint: Endpoint, target: str) -> int | None:
    """None if the server hung up."""
    try:
        with PlainCaller.to_port(endpoint.server.port) as caller:
            header = f"X-Amzn-SageMaker-Target-Model: {target}\r\n"
            return caller.request("POST", f"/endpoints/{endpoint.name}/invocations", b'{"inputs": "hello"}', header)[0]
    except ConnectionError:
        return None


def _written(store: Path) -> int:
    total = 0
    for path in store.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed while we looked
            continue
    return total


def _leftovers(store: Path) -> list[str]:
    """What no finished import leaves: half-written files."""
    return [path.name for path in store.rglob("*") if path.is_file() and path.suffix in {".tmp", ".part", ".writing"}]
