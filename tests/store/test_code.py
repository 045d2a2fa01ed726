"""Versions of inference code: pushed once, never changed."""

import threading
from pathlib import Path

import pytest

from flatshare.core.errors import BadPackage, UnknownTarget
from flatshare.store.code import CodeShelf


@pytest.fixture
def shelf(tmp_path: Path) -> CodeShelf:
    return CodeShelf(f"file://{tmp_path}/store")


def _code(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / f"code-{text}"
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__/x.pyc").write_text("x")
    (folder / "model.py").write_text(text)
    (folder / "lib/more.py").write_text("more")
    return folder


def test_versions_count_up_and_the_same_files_again_are_the_same_version(shelf: CodeShelf, tmp_path: Path) -> None:
    pushed = [shelf.push("tagger", _code(tmp_path, text)).version for text in ("a", "b", "b", "c")]
    assert pushed == ["1", "2", "2", "3"]
    assert [v.version for v in shelf.list("tagger")] == ["1", "2", "3"]
    assert shelf.get("tagger").files == {"model.py": b"c", "lib/more.py": b"more"}
    assert shelf.get("tagger", "1").files["model.py"] == b"a"


def test_a_version_never_changes(shelf: CodeShelf, tmp_path: Path) -> None:
    shelf.push("tagger", _code(tmp_path, "a"), "1.0")
    assert shelf.push("tagger", _code(tmp_path, "a"), "1.0").version == "1.0"
    with pytest.raises(BadPackage, match="a version never changes"):
        shelf.push("tagger", _code(tmp_path, "b"), "1.0")
    assert shelf.get("tagger", "1.0").files["model.py"] == b"a"


def test_the_latest_is_the_highest_number_not_the_last_letter(shelf: CodeShelf, tmp_path: Path) -> None:
    for version in ("1.9", "1.10", "1.2"):
        shelf.push("tagger", _code(tmp_path, version), version)
    assert shelf.show("tagger").version == "1.10"


def test_of_two_who_push_one_version_at_once_exactly_one_wins(shelf: CodeShelf, tmp_path: Path) -> None:
    folders = [_code(tmp_path, str(index)) for index in range(8)]
    lost = list[Exception]()

    def push(folder: Path) -> None:
        try:
            shelf.push("tagger", folder, "1")
        except BadPackage as error:
            lost.append(error)

    threads = [threading.Thread(target=push, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    assert shelf.get("tagger", "1").version.version == "1"  # and what it pins is what lies there


def test_code_that_was_altered_in_the_store_is_refused(shelf: CodeShelf, tmp_path: Path) -> None:
    shelf.push("tagger", _code(tmp_path, "a"))
    [archive] = (tmp_path / "store/tagger").glob("*.tar")
    archive.write_bytes(archive.read_bytes().replace(b"more", b"evil"))
    with pytest.raises(BadPackage, match="was altered or lost"):
        shelf.get("tagger")


def test_a_digest_that_somebody_pinned_must_hold(shelf: CodeShelf, tmp_path: Path) -> None:
    pushed = shelf.push("tagger", _code(tmp_path, "a"))
    assert shelf.get("tagger", pinned_sha256=pushed.sha256)
    with pytest.raises(BadPackage, match="was asked for"):
        shelf.get("tagger", pinned_sha256="0" * 64)


@pytest.mark.parametrize(("name", "version", "sentence"), [("nobody", "latest", "no version of the code"), ("tagger", "9", "it has 1")])
def test_what_does_not_exist_is_said_with_what_does(shelf: CodeShelf, tmp_path: Path, name: str, version: str, sentence: str) -> None:
    shelf.push("tagger", _code(tmp_path, "a"))
    with pytest.raises(UnknownTarget, match=sentence):
        shelf.get(name, version)


@pytest.mark.parametrize("name", ["../x", "", "a/b", "latest"])
def test_names_cannot_leave_the_store(shelf: CodeShelf, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadPackage, match="must be 1 to 63 of"):
        shelf.push(name, _code(tmp_path, "a"))


def test_code_that_is_none_is_refused(shelf: CodeShelf, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, sentence in ((tmp_path / "empty", "must hold 1 to"), (tmp_path / "no", "is no folder")):
        with pytest.raises(BadPackage, match=sentence):
            shelf.push("tagger", folder)
