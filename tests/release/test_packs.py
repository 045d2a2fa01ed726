"""Packages in packs are deployed with the trunk that they refer to, which is sent once."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from flatshare.core.errors import BadInput, BadPackage, FlatshareError, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.sizes import MIB
from flatshare.instance.importing import ImportJob, import_artifact
from flatshare.package.build import Form, Package, read_package
from flatshare.package.packs import TRUNKS
from flatshare.release import upload
from flatshare.release.batch import deploy_all, read_requests
from flatshare.release.deploying import Wish, deploy, difference
from flatshare.release.packaging import PackageRequest, make_package, make_packages
from flatshare.release.site import Site, aws_site
from flatshare.store.shelf import Shelf
from tests.e2e.checkpoints import TEXT, expected
from tests.package.tuned import write_trunk_checkpoint, write_tuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk, three models that were tuned from it, and their packages."""
    folder = tmp_path_factory.mktemp("shop")
    base = write_trunk_checkpoint(folder / "base")
    for index in range(3):
        write_tuned(folder / f"tuned{index}", base, index)
    (folder / "models.csv").write_text("model,source\n" + "".join(f"packs/e{index},tuned{index}\n" for index in range(3)))
    like = PackageRequest("", "encoder", {}, {}, None, "", Form.PACKS, folder / "made", base)
    for made in make_packages(read_requests(folder / "models.csv", like)):
        assert isinstance(made, Package), made
    return folder


def _package(shop: Path, index: int) -> Package:
    return read_package(shop / f"made/packs-e{index}.package")


def test_a_batch_is_deployed_and_the_trunk_is_sent_once(server: RunningServer, site: Site, site_folder: Path, shop: Path) -> None:
    packages = [_package(shop, index) for index in range(3)]
    trunk = packages[0].record.trunks[0]
    assert difference(site, packages[0], Wish()).send_bytes > trunk.size_bytes
    done = {one.model: one for one in deploy_all(site, packages, Wish())}
    assert not [one.error for one in done.values() if one.error]
    sent = sorted(one.deployed.sent_bytes for one in done.values() if one.deployed)
    assert sent[1] < trunk.size_bytes / 4 < trunk.size_bytes < sent[2]
    assert [path.name for path in site_folder.glob(f"*/{TRUNKS}*")] == [trunk.id]
    with Models("packs", url=server.url) as models:
        for index in range(3):
            np.testing.assert_allclose(
                models.embed(TEXT, model=f"e{index}").vectors[0], expected(shop / f"tuned{index}"), atol=1e-5, err_msg=str(index)
            )
    assert difference(site, packages[1], Wish()).is_nothing
    again = [one.deployed for one in deploy_all(site, packages, Wish())]  # as after an interruption
    assert [(one.is_new_version, one.sent_bytes) for one in again if one] == [(False, 0)] * 3


def test_without_its_trunk_nothing_is_half_deployed(site: Site, shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "made/packs-e0.package", tmp_path / "alone.package")
    alone = read_package(tmp_path / "alone.package")
    shelf = Shelf(f"file://{tmp_path / 'empty'}")
    with pytest.raises(UnknownTarget, match=r"neither at '.*' nor beside the package: copy it to"):
        upload.send_trunks(shelf, alone)
    assert shelf.sizes("") == {}
    other = replace(alone, record=msgspec.structs.replace(alone.record, model="packs/alone"))
    done = next(deploy_all(site, [other], Wish(fleet="elsewhere")))
    assert "nor beside the package" in done.error
    assert site.book.find("packs/alone") is None


def test_an_altered_trunk_is_not_sent(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "made", tmp_path / "made")
    package = read_package(tmp_path / "made/packs-e0.package")
    pack = package.trunk(package.record.trunks[0]) / "weights.pack"
    content = pack.read_bytes()
    pack.write_bytes(content[:4] + b"?" + content[5:])
    shelf = Shelf(f"file://{tmp_path / 'empty'}")
    with pytest.raises(BadPackage, match="was altered"):
        upload.send_trunks(shelf, package)
    assert shelf.sizes("") == {}


def test_from_an_object_store_it_is_the_same_model(at_aws: str, monkeypatch: pytest.MonkeyPatch, shop: Path, tmp_path: Path) -> None:
    package, root = _package(shop, 0), f"s3://{at_aws}/models/"
    shelf = Shelf(root)
    assert upload.send_trunks(shelf, package) == package.record.trunks[0].size_bytes
    assert upload.send_trunks(shelf, package) == 0
    artifact = package.artifact(package.record.parts[0])
    for path in artifact.rglob("*"):
        if path.is_file():
            shelf.put(f"acme/e0/{path.relative_to(artifact).as_posix()}", path)
    digest = import_artifact(ImportJob(tmp_path / "store", ArtifactUri(f"{root}acme/e0"), root, 1024 * MIB, frozenset())).digest
    assert digest == package.record.answered_as[""]


def test_aws_does_not_take_packs(at_aws: str, shop: Path) -> None:
    site = aws_site(f"s3://{at_aws}/", role=None, image=None, instance_type=None)
    with pytest.raises(BadInput, match=r"package it with --form tar\.gz"):
        deploy(site, _package(shop, 0), Wish())


def test_one_that_does_not_pass_keeps_none_of_the_others(shop: Path, tmp_path: Path) -> None:
    broken = write_tuned(tmp_path / "broken", shop / "base", 9)
    (broken / "config.json").write_text('{"model_type": "bert"}')
    like = PackageRequest("", "encoder", {}, {}, None, "", Form.PACKS, trunk=shop / "base")
    sources = {"a/broken": broken, "a/good": shop / "tuned0", "a/nowhere": tmp_path / "nowhere"}
    requests = [_like(like, model, source, tmp_path / f"{model[2:]}.package") for model, source in sources.items()]
    broken_one, good, nowhere = make_packages(requests)
    assert isinstance(broken_one, BadPackage)
    assert "does not answer its sample" in str(broken_one)
    assert isinstance(good, Package)
    assert isinstance(nowhere, FlatshareError)
    assert "does not exist" in str(nowhere)
    assert not (tmp_path / "broken.package").exists()


def _like(request: PackageRequest, model: str, source: Path, out: Path) -> PackageRequest:
    return replace(request, model=model, sources={"": source}, out=out)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"form": Form.FOLDER}, "--trunk goes with --form packs"),
        ({"trunk": Path("/nowhere")}, "has no safetensors files"),
    ],
)
def test_a_trunk_that_makes_no_sense_is_refused(shop: Path, tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    request = PackageRequest("a/b", "encoder", {"": shop / "tuned0"}, {}, None, "", Form.PACKS, tmp_path / "x.package", shop / "base")
    with pytest.raises(BadInput, match=sentence):
        make_package(replace(request, **changes))  # type: ignore[arg-type]  # each of its own type


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("source\nx", "each row names a 'model'"), ("model\na/b", "each row names a 'model'"), ("model,source\n", "no model")],
)
def test_a_file_that_lists_no_models_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read_requests(tmp_path / "m.csv", PackageRequest("", "encoder", {}, {}, None, ""))


def test_a_model_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("model,query,document\na/b,q,d\na/b,q,d\n")
    with pytest.raises(BadInput, match="lists a/b twice"):
        read_requests(tmp_path / "m.csv", PackageRequest("", "two-encoders", {}, {}, None, ""))
