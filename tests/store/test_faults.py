"""A store behind a bad network: what arrives is right, or a clear error comes in bounded time; never wrong bytes."""

import os
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flatshare.core.errors import StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.store import download, remote
from flatshare.store.sources import fetch, probe
from tests.store.conftest import BUCKET, KEY, S3, SECRET, tree_of
from tests.store.faults import Fault, FaultyProxy, cut_after, refused, stalled_after

LIMITS = StoreLimits()
ROOT = f"s3://{BUCKET}/"
PIECE = 65_536
BODY = random.Random(1).randbytes(3 * PIECE + 17)  # dice, not secrets
READ_S = 0.4
RETRY_S = 2.0


@pytest.fixture
def proxy(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The way to the server, with time-outs that a test can wait for; each is a twentieth of what is in force."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(download, "_PIECE_BYTES", PIECE)
    limits = {"read_timeout": timedelta(seconds=READ_S), "connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=10)}
    monkeypatch.setattr(remote, "_CLIENT", limits)
    backoff = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_S), "backoff": backoff})
    remote._store.cache_clear()
    with FaultyProxy(s3_server.port).up() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{running.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield running
    remote._store.cache_clear()


@pytest.fixture
def key(request: pytest.FixtureRequest, s3_server: S3) -> str:
    """A place of the test's own, with one artifact of several pieces in it."""
    place = f"faults-{abs(hash(request.node.nodeid)):x}"
    s3_server.put(f"{place}/weights", BODY)
    s3_server.put(f"{place}/config.json", b"{}")
    return place


WHOLE = {"weights": BODY, "config.json": b"{}"}
PASSING: dict[str, list[Fault | None]] = {
    "500 twice": [refused(500), refused(500)],
    "503, then 500": [refused(503), refused(500)],
    "a reset before any answer": [cut_after(0)],
    "silence before any answer": [stalled_after(0)],
    "a reset in the head": [cut_after(20)],
}


def fetched(key: str, folder: Path) -> dict[str, bytes | None]:
    return tree_of(fetch(probe(ArtifactUri(ROOT + key), root=ROOT), folder, LIMITS))


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("place", ["the list", "a piece"])
def test_what_passes_is_survived_without_anybody_noticing(proxy: FaultyProxy, key: str, tmp_path: Path, fault: str, place: str) -> None:
    well: list[Fault | None] = [] if place == "the list" else [None]
    proxy.script = [*well, *PASSING[fault]]
    assert fetched(key, tmp_path) == WHOLE
    assert proxy.script == [], "the fault was met"


LASTING = {
    "500": refused(500),
    "503": refused(503),
    "429": refused(429),
    "a reset before any answer": cut_after(0),
    "silence before any answer": stalled_after(0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_a_clear_error_in_bounded_time_and_goes_on_where_it_stopped(
    proxy: FaultyProxy, key: str, tmp_path: Path, fault: str
) -> None:
    artifact = probe(ArtifactUri(ROOT + key), root=ROOT)
    proxy.ever = LASTING[fault]
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match="try again"):
        fetch(artifact, tmp_path, LIMITS)
    assert time.monotonic() - started_s < 60, "bounded by retries and time-outs, and far from the stall's end times the pieces"
    assert not list(tmp_path.rglob("files/weights")), "nothing half done has a final name"
    proxy.ever = None
    assert tree_of(fetch(artifact, tmp_path, LIMITS)) == WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("fault", [cut_after(PIECE // 2), stalled_after(PIECE // 2)], ids=["reset", "silence"])
def test_bodies_that_break_off_again_and_again_are_put_together(proxy: FaultyProxy, key: str, tmp_path: Path, fault: Fault) -> None:
    """Each request brings half of what it asks for. The client asks for the rest, and so does whoever fetches again."""
    artifact = probe(ArtifactUri(ROOT + key), root=ROOT)
    proxy.ever = fault
    for _ in range(20):
        try:
            assert tree_of(fetch(artifact, tmp_path, LIMITS)) == WHOLE
        except StoreUnavailable:
            continue
        assert proxy.requests > 2 + len(BODY) // PIECE
        return
    raise AssertionError("it never arrived")


@pytest.mark.parametrize("fault", [refused(500), refused(503), cut_after(0)], ids=["500", "503", "reset"])
def test_a_list_that_fails_for_good_is_a_clear_error(proxy: FaultyProxy, key: str, fault: Fault) -> None:
    proxy.ever = fault
    with pytest.raises(StoreUnavailable, match=f"'s3://{BUCKET}/{key}'"):
        probe(ArtifactUri(ROOT + key), root=ROOT)


@pytest.mark.parametrize("status", [401, 403])
def test_a_store_that_denies_is_not_taken_for_one_that_fails(proxy: FaultyProxy, key: str, status: int) -> None:
    proxy.ever = refused(status)
    with pytest.raises(UnknownTarget, match="may not be read"):
        probe(ArtifactUri(ROOT + key), root=ROOT)
    assert proxy.requests == 1, "asking again would not help"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_whatever_mixture_of_faults_comes_the_bytes_are_right_in_the_end(proxy: FaultyProxy, key: str, tmp_path: Path, seed: int) -> None:
    """Fetch again after each clear error, as the importer's callers do: every try leaves more, and none leaves anything wrong."""
    dice = random.Random(seed)  # dice, not secrets
    faults = [refused(500), refused(503), cut_after(0), cut_after(300), cut_after(PIECE // 3), None, None]
    proxy.script = [dice.choice(faults) for _ in range(40)]
    for _ in range(60):
        try:
            assert fetched(key, tmp_path / "into") == WHOLE
        except StoreUnavailable:
            continue
        return
    raise AssertionError("it never arrived")


def test_with_the_signature_of_another_secret_nothing_is_read(proxy: FaultyProxy, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(UnknownTarget, match="may not be read"):
        probe(ArtifactUri(ROOT + key), root=ROOT)
