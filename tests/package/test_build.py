"""Packages: the same input, the same bytes; nothing is published that did not pass."""

import tarfile
from pathlib import Path

import orjson
import pytest

from flatshare.core.errors import BadPackage
from flatshare.package.assembly import PlannedFile, PlannedPart
from flatshare.package.build import Form, Origin, Package, Tried, build_package, read_package, verify_package

ORIGIN = Origin("acme/intent", "classification", "mine", "0" * 64, {"v": "1"}, {"inputs": "x"}, None)
FORMS = [Form.FOLDER, Form.TAR, Form.TAR_GZ]  # packs are for checkpoints: test_packs.py


def _parts(tmp_path: Path, text: str = "weights") -> tuple[PlannedPart, ...]:
    source = tmp_path / "weights.bin"
    source.write_text(text)
    return (PlannedPart("", (PlannedFile("a/weights.bin", source), PlannedFile("config.json", b"{}"))),)


def _build(tmp_path: Path, out: str, form: Form, text: str = "weights") -> Package:
    return build_package(_parts(tmp_path, text), ORIGIN, tmp_path / out, form, lambda _: {"": Tried("d" * 64, {"inputs": "x"})})


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, form: Form) -> None:
    first, second = _build(tmp_path, "one", form), _build(tmp_path, "two", form)
    assert _bytes(first.folder) == _bytes(second.folder)
    assert _build(tmp_path, "three", form, "others").record.digest != first.record.digest


def test_a_models_digest_does_not_depend_on_the_form_of_its_package(tmp_path: Path) -> None:
    assert len({_build(tmp_path, form, form).record.digest for form in FORMS}) == 1


@pytest.mark.parametrize("form", [Form.TAR, Form.TAR_GZ])
def test_archives_say_nothing_of_time_and_owner(tmp_path: Path, form: Form) -> None:
    made = _build(tmp_path, "one", form)
    with tarfile.open(made.artifact(made.record.parts[0])) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == ["a/weights.bin", "config.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_the_record_tells_no_path_of_this_machine(tmp_path: Path) -> None:
    text = (_build(tmp_path, "one", Form.FOLDER).folder / "package.json").read_text()
    assert str(tmp_path) not in text
    assert orjson.loads(text)["layout"] == "mine"


@pytest.mark.parametrize("form", FORMS)
def test_a_package_is_read_back_and_an_altered_one_is_noticed(tmp_path: Path, form: Form) -> None:
    made = read_package(_build(tmp_path, "one", form).folder)
    verify_package(made)
    assert made.record.answered_as == {"": "d" * 64}
    artifact = made.artifact(made.record.parts[0])
    altered = artifact / "config.json" if artifact.is_dir() else artifact
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    with pytest.raises(BadPackage, match="was altered"):
        verify_package(made)


def test_what_does_not_pass_is_not_published_and_the_old_package_stays(tmp_path: Path) -> None:
    before = _bytes(_build(tmp_path, "one", Form.FOLDER).folder)

    def refuse(_: Package) -> dict[str, Tried]:
        raise BadPackage("it does not answer")

    with pytest.raises(BadPackage, match="it does not answer"):
        build_package(_parts(tmp_path, "others"), ORIGIN, tmp_path / "one", Form.FOLDER, refuse)
    assert _bytes(tmp_path / "one") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "weights.bin"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadPackage, match="is no package: choose another place"):
        _build(tmp_path, "mine", Form.FOLDER)


@pytest.mark.parametrize(("spoil", "sentence"), [("package.json", "is no package"), ("model", "lacks its artifact")])
def test_a_folder_that_lacks_something_is_no_package(tmp_path: Path, spoil: str, sentence: str) -> None:
    made = _build(tmp_path, "one", Form.FOLDER)
    (made.folder / spoil).rename(tmp_path / "away")
    with pytest.raises(BadPackage, match=sentence):
        read_package(made.folder)


def test_a_record_of_a_later_version_is_not_guessed_at(tmp_path: Path) -> None:
    made = _build(tmp_path, "one", Form.FOLDER)
    record = orjson.loads((made.folder / "package.json").read_bytes())
    (made.folder / "package.json").write_bytes(orjson.dumps(record | {"news": 1}))
    with pytest.raises(BadPackage, match="unknown field `news`"):
        read_package(made.folder)
