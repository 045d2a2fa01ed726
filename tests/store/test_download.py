"""Objects come by several ranges at once, and whatever kills a fetch, the next one asks only for what is missing."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flatshare.core.call import Urgency
from flatshare.core.errors import StoreUnavailable
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import DiskSettings, StoreLimits
from flatshare.core.sizes import MIB
from flatshare.store import download, etag
from flatshare.store.link import Link
from flatshare.store.objects import SourceFile
from flatshare.store.sources import fetch, probe
from tests.store.conftest import BUCKET, S3, Proxy, Seen, full_disk_at, tree_of

PIECE, ROOT = 65_536, f"s3://{BUCKET}/"
_FETCH = """
import sys
from pathlib import Path
from flatshare.core.settings import StoreLimits
from flatshare.store import download
from flatshare.store.sources import fetch, probe
download._PIECE_BYTES = int(sys.argv[3])
fetch(probe(sys.argv[1], root=sys.argv[1].rsplit("/", 1)[0]), Path(sys.argv[2]), StoreLimits())
"""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PIECE_BYTES", PIECE)


def fetched(key: str, folder: Path) -> dict[str, bytes | None]:
    return tree_of(fetch(probe(ArtifactUri(ROOT + key), root=ROOT), folder, StoreLimits()))


def test_the_ranges_of_one_object_are_asked_for_side_by_side(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    """Each of four requests is answered only when all four have come."""
    body, together = os.urandom(4 * PIECE), threading.Barrier(4)
    s3.put("parallel/weights", body)

    def wait_for_the_others(request: Seen) -> None:
        if request.range:
            together.wait(20)

    proxy.before = wait_for_the_others
    assert fetched("parallel", tmp_path) == {"weights": body}


@pytest.mark.slow
def test_a_fetch_that_is_killed_goes_on_where_it_stopped(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    body, held = os.urandom(5 * PIECE + 7), threading.Event()
    s3.put("killed/weights", body)

    def hold_the_last_two(request: Seen) -> None:
        if request.range and int(request.range.removeprefix("bytes=").split("-")[0]) >= 4 * PIECE:
            held.wait(30)

    proxy.before = hold_the_last_two
    command = [sys.executable, "-c", _FETCH, f"{ROOT}killed", str(tmp_path), str(PIECE)]
    with subprocess.Popen(command) as process:
        journal = _journal_of(tmp_path, arrived=4)
        process.send_signal(signal.SIGKILL)
    held.set()
    proxy.before = None
    proxy.seen.clear()
    assert journal.exists()
    assert fetched("killed", tmp_path) == {"weights": body}
    assert sorted(map(str, proxy.ranges())) == [f"bytes={4 * PIECE}-{5 * PIECE - 1}", f"bytes={5 * PIECE}-{5 * PIECE + 6}"]
    assert not list(tmp_path.rglob("parts/*"))


def test_what_was_written_before_a_power_cut_is_not_trusted(s3: S3, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(2 * PIECE)
    s3.put("rebooted/weights", body)
    proxy.cut_after = PIECE // 2
    with pytest.raises(Exception, match="try again"):
        fetched("rebooted", tmp_path)
    proxy.cut_after = proxy.status = None
    proxy.seen.clear()
    monkeypatch.setattr(download, "_boot", lambda: "another")
    assert fetched("rebooted", tmp_path) == {"weights": body}
    assert sorted(map(str, proxy.ranges())) == [f"bytes=0-{PIECE - 1}", f"bytes={PIECE}-{2 * PIECE - 1}"]


def test_a_disk_without_room_for_all_of_it_is_noticed_before_anything_is_asked_for(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    s3.put("large/weights", bytes(4 * PIECE))
    artifact = probe(ArtifactUri(f"{ROOT}large"), root=ROOT)
    with full_disk_at(2 * PIECE), pytest.raises(Exception, match="free some space"):
        fetch(artifact, tmp_path, StoreLimits())
    assert proxy.ranges() == []


def test_more_files_than_are_open_at_once_come_over_whole(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FILES_AT_ONCE", 2)
    wanted = {f"f{number}": bytes([number]) * number for number in range(5)}
    for name, body in wanted.items():
        s3.put(f"many/{name}", body)
    assert fetched("many", tmp_path) == wanted


def test_a_fetch_keeps_to_the_bandwidth(s3: S3, tmp_path: Path) -> None:
    """Five pieces at ten a second: the last may not begin before 0.4 s have gone."""
    body = os.urandom(5 * PIECE)
    s3.put("bounded/weights", body)
    artifact = probe(ArtifactUri(f"{ROOT}bounded"), root=ROOT)
    link, began_s = Link(tmp_path, DiskSettings(bandwidth_bytes=10 * PIECE), Urgency.DEMAND), time.monotonic()
    assert tree_of(fetch(artifact, tmp_path / "into", StoreLimits(), link)) == {"weights": body}
    assert time.monotonic() - began_s >= 0.4


class TestWhatArrived:
    def test_is_refused_if_it_is_not_what_the_tag_says_and_asked_for_anew(self, s3: S3, proxy: Proxy, tmp_path: Path) -> None:
        body = os.urandom(2 * PIECE)
        s3.put("damaged/weights", body)
        s3.put("damaged/config", b"{}")
        proxy.is_damaging = True
        with pytest.raises(StoreUnavailable, match="not what its ETag says"):
            fetched("damaged", tmp_path)
        assert not [path for path in tmp_path.rglob("files/*") if path.is_file()]
        proxy.is_damaging = False
        proxy.seen.clear()
        assert fetched("damaged", tmp_path) == {"weights": body, "config": b"{}"}
        assert f"bytes=0-{PIECE - 1}" in proxy.ranges()

    def test_is_taken_if_a_key_of_kms_makes_the_tag_another_one_than_the_md5(self, s3: S3, proxy: Proxy, tmp_path: Path) -> None:
        s3.put("encrypted/weights", b"weights")
        proxy.is_damaging, proxy.headers = True, {"x-amz-server-side-encryption": "aws:kms"}
        assert fetched("encrypted", tmp_path) == {"weights": b"veights"}

    def test_is_asked_for_again_if_the_store_does_not_say_how_it_is_encrypted(self, s3: S3, proxy: Proxy, tmp_path: Path) -> None:
        s3.put("silent/weights", b"weights")
        proxy.is_damaging = True

        def fall_silent(request: Seen) -> None:
            proxy.status = 503 if request.method == "HEAD" else None

        proxy.before = fall_silent
        with pytest.raises(StoreUnavailable, match="does not say how"):
            fetched("silent", tmp_path)

    def test_is_compared_with_the_md5s_of_parts_as_boto3_makes_them(self, s3: S3, tmp_path: Path) -> None:
        body = bytes(1) + bytes(33 * MIB) + bytes(1)
        s3.client.upload_fileobj(io.BytesIO(body), BUCKET, "parts/weights")
        (file,) = probe(ArtifactUri(f"{ROOT}parts"), root=ROOT).files
        assert file.version.endswith('-5"')
        path = tmp_path / "weights"
        path.write_bytes(body)
        assert etag.fits(file, path)
        path.write_bytes(body[:-1] + b"x")
        assert not etag.fits(file, path)
        assert etag.fits(replace(file, version=file.version.replace("-5", "-4")), path), "of other parts nothing is known"

    def test_may_be_empty(self, s3: S3, tmp_path: Path) -> None:
        s3.put("empty/weights", b"")
        assert fetched("empty", tmp_path) == {"weights": b""}

    @pytest.mark.parametrize("tag", [f'"{"0f" * 16}-2"', f'W/"{"0f" * 16}"', '"0x8D"', "2026-01-01T00:00:00"])
    def test_is_taken_if_the_tag_is_no_md5(self, tag: str, tmp_path: Path) -> None:
        (tmp_path / "weights").write_bytes(b"weights")
        assert etag.fits(SourceFile("weights", 7, tag), tmp_path / "weights")


def _journal_of(folder: Path, *, arrived: int) -> Path:
    """Wait until so many pieces have arrived whole."""
    with_all = (PIECE).to_bytes(8, "little")
    for _ in range(2_000):
        for path in folder.rglob("*.journal"):
            counts = path.read_bytes()
            if sum(counts[at : at + 8] == with_all for at in range(0, len(counts), 8)) >= arrived:
                return path
        threading.Event().wait(0.01)
    raise AssertionError("the pieces never arrived")
