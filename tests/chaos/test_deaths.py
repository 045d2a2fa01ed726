"""Instances die, by our hand and by their models'. Everybody is answered, with the right weights, and the books balance."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.conftest import MODELS, all_answer, harmed, in_parallel, kill_an_instance, target, unload
from tests.chaos.witness import Caller, Victim, instance_pids
from tests.e2e.servers import until

pytestmark = pytest.mark.slow


def test_an_instance_killed_among_requests_loads_and_unloads_again_and_again(victim: Victim) -> None:
    all_answer(victim)
    caller, dice = Caller(victim), random.Random(6)
    for _ in range(2):
        jobs: list[Callable[[], object]] = [partial(caller.until_answered, target(n)) for n in dice.sample(range(MODELS), MODELS)]
        jobs.insert(dice.randrange(3, 6), partial(kill_an_instance, victim))
        in_parallel(jobs)
        in_parallel([partial(_unload_all, victim), partial(kill_an_instance, victim)])


def test_an_instance_killed_in_the_midst_of_an_unload_comes_back_and_has_the_model_again(victim: Victim, tmp_path: Path) -> None:
    all_answer(victim)
    marker = tmp_path / "leaves"
    Caller(victim).until_answered(target(3), f"LINGER {marker}")
    with ThreadPoolExecutor(1) as pool:
        departure = pool.submit(unload, victim, target(3))
        until(lambda: bool(wait([departure], timeout=0.02).done) or marker.exists())
        assert not departure.done()
        kill_an_instance(victim)
        with pytest.raises(ConnectionError):
            departure.result(timeout=60)


def test_it_is_back_within_seconds_and_has_its_hot_models_without_being_asked(
    victim: Victim, record_property: Callable[[str, object], None]
) -> None:
    """The run's summary says how long it took; the bound here is for a machine that is slow and busy."""
    all_answer(victim)
    [dead] = instance_pids(victim)
    until(lambda: _written_since(victim, time.time() - 4), within_s=30)
    kill_an_instance(victim)
    began_s = time.monotonic()
    Caller(victim).until_answered(target(0), within_s=15)
    record_property("recovery", ("the first answer", time.monotonic() - began_s))
    until(lambda: len(_resident(victim)) == MODELS, within_s=15)
    record_property("recovery", (f"all {MODELS} hot models in memory", time.monotonic() - began_s))
    assert dead not in instance_pids(victim)


def test_a_model_that_segfaults_is_shut_out_and_its_neighbours_go_on(victim: Victim) -> None:
    caller, poison, said = Caller(victim), target(0), b""
    all_answer(victim)
    for _ in range(12):
        status, said = caller.call(poison, "SEGFAULT")
        if status == 424:
            break
        caller.until_answered(target(1))
    assert b"shut out" in said, said
    victim.lost.add(poison)


def test_a_model_that_hangs_costs_one_worker_and_then_the_instance_but_nobody_s_answer(victim: Victim) -> None:
    caller = Caller(victim)
    all_answer(victim)
    [hanging] = instance_pids(victim)
    results = in_parallel([partial(caller.call, target(1), "HANG 90"), *(partial(caller.until_answered, target(n)) for n in range(2, 6))])
    assert len(results) == 5
    until(lambda: bool(instance_pids(victim)) and hanging not in instance_pids(victim), within_s=60)


def test_a_model_that_leaks_has_its_instance_replaced_before_the_machine_is_full(victim: Victim) -> None:
    caller = Caller(victim)
    caller.until_answered(target(2))
    [leaking] = instance_pids(victim)
    for _ in range(12):
        caller.until_answered(target(2), "LEAK 100")
        caller.until_answered(target(3))
        if leaking not in instance_pids(victim):
            break
    until(lambda: leaking not in instance_pids(victim), within_s=60)


def test_a_model_that_asks_for_more_than_the_machine_has_hears_no(victim: Victim) -> None:
    caller = Caller(victim)
    caller.until_answered(target(4))
    [pid] = instance_pids(victim)
    status, body = caller.call(target(4), "ALLOCATE 1000000")
    assert status == 424
    assert b"MemoryError" in body
    caller.until_answered(target(5))
    assert instance_pids(victim) == [pid]


def test_of_two_instances_one_may_die_and_no_request_fails(models: Path, tmp_path: Path) -> None:
    with harmed(tmp_path) as server:
        endpoint = Victim(server, "pair", models, instance_count=2)
        all_answer(endpoint)
        caller = Caller(endpoint)
        for _ in range(2):
            until(lambda: len(instance_pids(endpoint)) == 2 and len([i for i in endpoint.instances() if "balance" in i]) == 2, within_s=30)
            jobs: list[Callable[[], object]] = [partial(caller.call, target(n)) for n in range(60)]
            jobs.insert(20, partial(kill_an_instance, endpoint))
            in_parallel(jobs)
        assert set(caller.statuses) == {200}


def _unload_all(endpoint: Victim) -> None:
    """As far as the instance lives to do it."""
    with suppress(OSError, KeyError, IndexError):
        endpoint.server.unload_all()


def _resident(endpoint: Victim) -> set[str]:
    return {model["uri"] for instance in endpoint.instances() for model in instance.get("models", [])}


def _written_since(endpoint: Victim, since_s: float) -> bool:
    """Has the instance noted what is hot?"""
    endpoint.invoke(target(0))
    files = [path for path in _data(endpoint).glob("store/instances/*.hot.json") if path.stat().st_mtime > since_s]
    return bool(files)


def _data(endpoint: Victim) -> Path:
    command = Path(f"/proc/{endpoint.server.process.pid}/cmdline").read_bytes().decode().split("\0")
    return Path(command[command.index("--data") + 1])
