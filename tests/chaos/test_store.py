"""The store is slow, dies, cuts its answers short; the disk is full while a model is fetched. Real S3 server, real proxy, real disk."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from flatshare.bench.machine import family
from flatshare.bench.server import RunningServer
from tests.chaos.conftest import MODELS, all_answer, harmed, in_parallel, small_disk, target
from tests.chaos.witness import Caller, HarmedServer, Victim, instance_pids
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import until
from tests.store.conftest import BUCKET, KEY, S3, SECRET, s3_server
from tests.store.faults import FaultyProxy, cut_after, refused, stalled_after

pytestmark = pytest.mark.slow
__all__ = ["s3_server"]
MIB = 1 << 20


def served(server: HarmedServer, s3: S3, models: Path, kind: type[Victim] = Victim) -> Victim:
    """The models as objects below a prefix of the test's own, behind an endpoint."""
    prefix = models.name
    for path in models.rglob("*"):
        if path.is_file():
            s3.put(f"{prefix}/{path.relative_to(models)}", path.read_bytes())
    return kind(server, "far", models, f"s3://{BUCKET}/{prefix}/")


@contextmanager
def behind(s3: S3) -> Iterator[tuple[FaultyProxy, dict[str, str]]]:
    """A proxy before the store, and the environment that leads to it."""
    with FaultyProxy(s3.port).up() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        yield proxy, {"AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


def all_of(endpoint: Victim, caller: Caller) -> None:
    in_parallel([partial(caller.until_answered, target(number)) for number in range(MODELS)])


def test_a_slow_store_that_cuts_its_answers_brings_every_model_whole(s3_server: S3, models: Path, tmp_path: Path) -> None:
    with behind(s3_server) as (proxy, environment), harmed(tmp_path, environment=environment) as server:
        endpoint = served(server, s3_server, models)
        dice, proxy.delay_s = random.Random(11), 0.05
        kinds = [refused(500), refused(503), cut_after(0), cut_after(300), cut_after(9_000), None, None]
        proxy.script = [stalled_after(2_000), *(dice.choice(kinds) for _ in range(40))]
        all_of(endpoint, Caller(endpoint))


def test_while_the_store_is_dead_what_is_on_the_disk_is_served_and_the_rest_hears_why(s3_server: S3, models: Path, tmp_path: Path) -> None:
    with behind(s3_server) as (proxy, environment), harmed(tmp_path, environment=environment) as server:
        endpoint = served(server, s3_server, models)
        all_answer(endpoint)
        caller = Caller(endpoint)
        server.unload_all()
        proxy.ever = refused(503)
        status, body = caller.call("tenant-0/never-asked-for")
        assert status == 530
        assert b"try again" in body
        caller.statuses.clear()
        all_of(endpoint, caller)
        assert set(caller.statuses) == {200}
        proxy.ever = None
        s3_server.put(f"{models.name}/tenant-0/late/config.json", b"{}")
        until(lambda: caller.call("tenant-0/late")[0] == 424, within_s=60)  # it answers again: this one is refused for what it is


def test_an_importer_killed_in_the_middle_of_a_fetch_costs_one_try(s3_server: S3, models: Path, tmp_path: Path) -> None:
    with behind(s3_server) as (proxy, environment), harmed(tmp_path, environment=environment) as server:
        endpoint = served(server, s3_server, models)
        caller = Caller(endpoint)
        known = set(family(server.process.pid))
        proxy.delay_s = 0.4
        in_parallel([partial(caller.until_answered, target(0)), partial(_kill_the_importer, server, known, tmp_path)])
        proxy.delay_s = 0.0
        assert 530 in caller.statuses, "nobody noticed: it was not killed in the middle"


def _kill_the_importer(server: RunningServer, known: set[int], data: Path) -> None:
    """The youngest process of the family, once it has begun to fetch."""
    until(lambda: bool(list(data.glob("store/incoming/*/*/parts/*"))), within_s=30)
    os.kill(max(set(family(server.process.pid)) - known), signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_while_a_model_is_fetched_keeps_what_is_in_use_and_gives_up_what_is_not(
    s3_server: S3, models: Path, tmp_path: Path
) -> None:
    catalogue = tmp_path / "filling"
    for seed in range(4):
        write_checkpoint(catalogue / f"t/m{seed}", 30 + seed, rows=16_000)  # 2 MB each, twice that while it is imported
    write_checkpoint(catalogue / "t/huge", 77, rows=100_000)
    data = tmp_path / "data"
    data.mkdir()
    with small_disk(data, megabytes=9), behind(s3_server) as (_, environment), harmed(data, environment=environment) as server:
        endpoint = served(server, s3_server, catalogue, Cramped)
        caller = Caller(endpoint)
        for seed in (0, 1, 2, 3, 0, 1):  # not all of them fit: who is not in memory leaves
            server.unload_all()
            caller.until_answered(f"t/m{seed}")
            endpoint.require_right(f"t/m{seed}")
        assert len(list(data.glob("store/packs/*.pack"))) < 4, "all of them fit: this disk is not small"
        [pid] = instance_pids(endpoint)
        status, body = caller.call("t/huge")
        assert status == 503
        assert b"disk" in body
        assert not list(data.rglob("*.part"))
        endpoint.require_right("t/m1")
        assert instance_pids(endpoint) == [pid]
        with (data / "filler").open("wb", buffering=0) as filler, suppress(OSError):  # to the last byte, which no budget knows of
            while True:
                filler.write(bytes(4096))
        status, body = caller.call("t/huge")
        assert status == 503
        assert b"disk" in body
        endpoint.require_right("t/m1")
        (data / "filler").unlink()


class Cramped(Victim):
    """Only one of its models fits on the disk beside what another's import takes."""

    def prove(self, name: str) -> None:
        self.server.unload_all()
        super().prove(name)
