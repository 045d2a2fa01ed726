"""The file that says which code may run."""

import os
import threading
from pathlib import Path

import pytest

from flatshare.core.errors import BadInput, UnpublishedCode
from flatshare.core.ids import Digest
from flatshare.store.published import PublishedCode, PublishedFile

A, B = Digest("a" * 64), Digest("b" * 64)


@pytest.fixture
def file(tmp_path: Path) -> PublishedFile:
    return PublishedFile(tmp_path / "data" / "published-code.json")


def test_what_is_published_is_listed_until_it_is_revoked(file: PublishedFile) -> None:
    assert file.read() == {}
    file.publish(A, "tagger", 1.0)
    file.publish(B, "ranker", 2.0)
    file.publish(A, "tagger, again", 3.0)
    assert [(p.digest, p.note) for p in file.read().values()] == [(A, "tagger, again"), (B, "ranker")]
    assert file.revoke(A).note == "tagger, again"
    assert list(file.read()) == [B]
    with pytest.raises(UnpublishedCode, match="flatshare code published"):
        file.revoke(A)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64, "../x"])
def test_what_is_no_digest_is_refused(file: PublishedFile, digest: str) -> None:
    with pytest.raises(BadInput, match="64 hexadecimal digits"):
        file.publish(digest, "", 0.0)


def test_of_several_who_publish_at_once_none_is_lost(file: PublishedFile) -> None:
    digests = [f"{number:064x}" for number in range(20)]
    threads = [threading.Thread(target=file.publish, args=(digest, "", 0.0)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(file.read()) == digests


def test_an_instance_hears_of_what_is_published_at_once_and_of_what_is_revoked_when_it_looks_again(
    file: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("flatshare.store.published.time.monotonic", lambda: now_s[0])
    code = PublishedCode(file.path)
    with pytest.raises(UnpublishedCode, match=f"flatshare code publish {A}"):
        code.require(A, "m")
    file.publish(A, "", 0.0)
    code.require(A, "m")
    file.revoke(A)
    code.require(A, "m")
    now_s[0] += 1.0
    with pytest.raises(UnpublishedCode):
        code.require(A, "m")


def test_a_file_that_others_may_write_admits_nothing(file: PublishedFile) -> None:
    file.publish(A, "", 0.0)
    os.chmod(file.path, 0o666)  # noqa: PTH101
    with pytest.raises(BadInput, match="chmod"):
        file.read()
    with pytest.raises(UnpublishedCode):
        PublishedCode(file.path).require(A, "m")


@pytest.mark.parametrize("text", ["", "{}", '[{"digest": 1}]', '[{"digest": "a", "note": "", "published_s": 0, "more": 1}]'])
def test_a_spoilt_file_admits_nothing(file: PublishedFile, text: str) -> None:
    file.publish(A, "", 0.0)
    file.path.write_text(text)
    with pytest.raises(BadInput, match="publish anew"):
        file.read()
    with pytest.raises(UnpublishedCode):
        PublishedCode(file.path).require(A, "m")
