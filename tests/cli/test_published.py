"""`flatshare code publish`, `published`, `revoke`."""

import tarfile
from pathlib import Path

import orjson
import pytest

from tests.cli.conftest import Flatshare
from tests.contract.packages import write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tagger")


def test_a_folder_an_archive_and_a_digest_name_the_same_code(flatshare: Flatshare, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "tagger.tar.gz", "w:gz") as tar:
        tar.add(folder, "tagger")
    [by_folder] = flatshare("code", "publish", str(folder), "--json").json
    [by_archive] = flatshare("code", "publish", "tagger.tar.gz", "--note", "reviewed", "--json").json
    [by_digest] = flatshare("code", "publish", by_folder["digest"], "--json").json
    assert by_folder["digest"] == by_archive["digest"] == by_digest["digest"]
    assert "tagger: tagger, version 1" in by_folder["note"]
    assert by_archive["note"] == "reviewed"
    [listed] = flatshare("code", "published", "--json").json
    assert listed == by_digest
    assert by_folder["digest"] in flatshare("code", "published").out


def test_a_package_of_several_parts_is_published_whole(flatshare: Flatshare, tmp_path: Path) -> None:
    for part in ("query", "document"):
        write_model(tmp_path / "two.package" / part)
        path = tmp_path / "two.package" / part / part / "1" / "model.py"
        path.write_text(path.read_text() + f"\nPART = {part!r}\n")
    assert len(flatshare("code", "publish", "two.package", "--json").json) == 2


def test_what_is_revoked_is_gone_and_the_audit_log_tells_of_both(flatshare: Flatshare, folder: Path, tmp_path: Path) -> None:
    [published] = flatshare("code", "publish", str(folder), "--json").json
    assert flatshare("code", "revoke", published["digest"]).status == 0
    assert flatshare("code", "published", "--json").json == []
    again = flatshare("code", "revoke", published["digest"])
    assert again.status == 1
    assert "flatshare code published" in again.said
    lines = [orjson.loads(line) for line in (tmp_path / "data/audit/changes.jsonl").read_bytes().splitlines()]
    assert [line["action"] for line in lines] == ["flatshare:PublishCode", "flatshare:RevokeCode"]
    assert all(f"code/{published['digest']}" in line["resources"] for line in lines)


def test_what_holds_no_code_is_said(flatshare: Flatshare, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    run = flatshare("code", "publish", "weights")
    assert run.status == 1
    assert "holds no Python model" in run.said
