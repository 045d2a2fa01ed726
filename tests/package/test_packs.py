"""Packages in packs: what has not changed since the trunk is referred to by digest, and lies once beside all of them."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from flatshare.core.errors import BadInput, BadPackage
from flatshare.package.assembly import PlannedFile, PlannedPart
from flatshare.package.build import Form, Origin, Package, Tried, build_package, read_package, verify_package
from flatshare.package.packed import read_listing
from flatshare.package.packs import PACK, TRUNKS, Pack, Trunk, write_trunk
from tests.package.tuned import TUNED, write_trunk_checkpoint, write_tuned

ORIGIN = Origin("acme/embedding", "embedding", "mine", "0" * 64, {}, {"inputs": "x"}, None)


def _build(source: Path, out: Path, form: Form = Form.PACKS, trunk: Trunk | None = None) -> Package:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    part = PlannedPart("", tuple(PlannedFile(path.relative_to(source).as_posix(), path) for path in files))
    return build_package((part,), ORIGIN, out, form, lambda _: {"": Tried("d" * 64, {"inputs": "x"})}, trunk)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_trunk_checkpoint(tmp_path / "base")


@pytest.fixture
def trunk(base: Path, tmp_path: Path) -> Trunk:
    return write_trunk([base / "model.safetensors"], tmp_path / TRUNKS)


def test_only_what_was_tuned_lies_in_the_package(base: Path, trunk: Trunk, tmp_path: Path) -> None:
    made = _build(write_tuned(tmp_path / "tuned", base, 1), tmp_path / "one.package", trunk=trunk)
    listing = read_listing(made.folder / "model/model.safetensors.packed")
    assert {tensor.name for tensor in listing.tensors if tensor.trunk is None} == {TUNED}
    assert (made.folder / "model/model.safetensors.pack").stat().st_size == 32 * 64 * 4
    assert not (made.folder / "model/model.safetensors").exists()
    assert [used.id for used in made.record.trunks] == [trunk.id]


def test_the_same_input_gives_the_same_bytes_and_the_digest_of_every_other_form(base: Path, trunk: Trunk, tmp_path: Path) -> None:
    tuned = write_tuned(tmp_path / "tuned", base, 1)
    first, second = (_build(tuned, tmp_path / f"{name}.package", trunk=trunk) for name in ("one", "two"))
    bytes_of = [{p.relative_to(made.folder): p.read_bytes() for p in made.folder.rglob("*") if p.is_file()} for made in (first, second)]
    assert bytes_of[0] == bytes_of[1]
    others = [_build(tuned, tmp_path / "plain.package", Form.FOLDER), _build(tuned, tmp_path / "whole.package")]
    assert {made.record.digest for made in (first, *others)} == {first.record.digest}


def test_a_trunk_is_written_once_under_the_name_of_what_it_holds(base: Path, trunk: Trunk, tmp_path: Path) -> None:
    before = (tmp_path / TRUNKS / trunk.id / PACK).stat().st_ino
    assert write_trunk([base / "model.safetensors"], tmp_path / TRUNKS) == trunk
    assert (tmp_path / TRUNKS / trunk.id / PACK).stat().st_ino == before
    assert [path.name for path in (tmp_path / TRUNKS).iterdir()] == [trunk.id]


@pytest.mark.parametrize("name", ["model/model.safetensors.pack", "model/model.safetensors.packed", "model/config.json"])
def test_what_was_altered_is_noticed(base: Path, trunk: Trunk, tmp_path: Path, name: str) -> None:
    made = read_package(_build(write_tuned(tmp_path / "tuned", base, 1), tmp_path / "one.package", trunk=trunk).folder)
    verify_package(made)
    (made.folder / name).write_bytes((made.folder / name).read_bytes()[:-1] + b"?")
    with pytest.raises(BadPackage, match="was altered since"):
        verify_package(made)


def test_a_record_that_claims_another_digest_is_noticed(base: Path, tmp_path: Path) -> None:
    made = _build(base, tmp_path / "one.package")
    with pytest.raises(BadPackage, match=r"package.json' was altered"):
        verify_package(replace(made, record=msgspec.structs.replace(made.record, digest="0" * 64)))


def test_an_altered_trunk_is_not_what_its_name_says(trunk: Trunk, tmp_path: Path) -> None:
    folder = tmp_path / TRUNKS / trunk.id
    Pack(folder).verify(trunk.id)
    with pytest.raises(BadPackage, match="not the trunk that its name says"):
        Pack(folder).verify("0" * 32)
    content = (folder / PACK).read_bytes()
    (folder / PACK).write_bytes(content[:4] + b"?" + content[5:])
    with pytest.raises(BadPackage, match="was altered"):
        Pack(folder).verify(trunk.id)
    (folder / PACK).write_bytes(content[:-1])
    with pytest.raises(BadPackage, match="shorter than its index says"):
        Pack(folder)


def test_what_opens_its_weights_itself_is_not_put_into_packs(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.pbtxt").write_text("name: 'x'")
    with pytest.raises(BadInput, match="choose --form folder"):
        _build(tmp_path / "model", tmp_path / "one.package")
    assert not (tmp_path / "one.package").exists()


def test_a_trunk_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="has no tensors"):
        write_trunk([], tmp_path / TRUNKS)
