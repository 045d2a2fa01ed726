"""Putting things into a store: whole or not at all, and why not in words that say what to do."""

import resource
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from flatshare.core.errors import BadInput, UnknownTarget
from flatshare.store.shelf import Shelf
from tests.store.conftest import BUCKET, S3, Proxy

NO_ROOM = """
    import sys
    from flatshare.core.errors import DiskFull
    from flatshare.store.shelf import Shelf
    try:
        Shelf(sys.argv[1]).put("a/big", bytes(200_000))
    except DiskFull as error:
        print(error)
"""


def test_a_place_that_cannot_be_made_is_named() -> None:
    with pytest.raises(UnknownTarget, match=r"cannot be made .*: choose another place, or mend its permissions"):
        Shelf("file:///proc/flatshare/models")


@pytest.mark.parametrize("uri", ["models", "http://x/y", "ftp://x"])
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="names no store that can be written to"):
        Shelf(uri)


def test_a_disk_without_room_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", dedent(NO_ROOM), f"file://{tmp_path}/store"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=limit).stdout  # one thread
    assert "there is no room for" in said
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_store_that_denies_says_what_to_look_at(s3: S3, proxy: Proxy, status: int) -> None:
    shelf = Shelf(f"s3://{BUCKET}/shelf/")
    shelf.put("a", b"1")
    proxy.status = status
    for call in (lambda: shelf.put("b", b"2"), lambda: shelf.put_new("b", b"2"), lambda: shelf.sizes("")):
        with pytest.raises(UnknownTarget, match="check the credentials or the folder's permissions"):
            call()
    proxy.status = None
    assert set(shelf.sizes("")) == {"a"}
