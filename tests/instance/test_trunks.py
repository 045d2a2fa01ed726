"""Artifacts in packs on their way into a store: the trunk is looked at, hashed once, and refused if it is not what was promised."""

import shutil
from pathlib import Path

import msgspec
import orjson
import pytest

from flatshare.core.errors import BadPackage, StoreUnavailable, UnknownTarget, UnsupportedModel
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.sizes import MIB
from flatshare.instance.importing import ImportJob, import_artifact
from flatshare.package.packed import Listing, read_listing, write_packed
from flatshare.package.packs import INDEX, PACK, TRUNKS, Trunk, write_trunk
from flatshare.store.tensors import TensorStore
from tests.package.conftest import save_albert
from tests.package.tuned import TUNED, write_trunk_checkpoint, write_tuned

LISTING = "model.safetensors.packed"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A prefix with a trunk, and two models that refer to it; `plain` has the first of them as it was."""
    base, place = write_trunk_checkpoint(tmp_path / "base"), tmp_path / "site"
    trunk = write_trunk([base / "model.safetensors"], place / TRUNKS)
    for seed in (1, 2):
        _pack(write_tuned(tmp_path / f"tuned{seed}", base, seed), place / f"acme/{seed}", trunk)
    shutil.copytree(tmp_path / "tuned1", place / "plain")
    return place


def _pack(source: Path, place: Path, trunk: Trunk) -> None:
    shutil.copytree(source, place)
    (place / "model.safetensors").unlink()
    write_packed(source / "model.safetensors", place / "model.safetensors", trunk)


def _import(site: Path, target: str) -> ModelDigest:
    uri = ArtifactUri(f"file://{site / target}")
    return import_artifact(ImportJob(site.parent / "store", uri, f"file://{site}", 1024 * MIB, frozenset())).digest


def _trunk_folder(site: Path) -> Path:
    [folder] = (site / TRUNKS).iterdir()
    return folder


def _restate(site: Path, target: str, **changes: object) -> None:
    """Let the listing say something else of the tuned tensor."""
    path = site / target / LISTING
    listing = read_listing(path)
    tensors = tuple(msgspec.structs.replace(t, **changes) if t.name == TUNED else t for t in listing.tensors)
    path.write_bytes(msgspec.json.encode(Listing(1, tensors)))


def test_a_model_from_packs_is_the_model_that_was_packed(site: Path) -> None:
    assert _import(site, "acme/1") == _import(site, "plain")
    assert _import(site, "acme/2") != _import(site, "plain")


def test_a_second_model_of_the_trunk_brings_only_its_own_tensors(site: Path) -> None:
    _import(site, "acme/1")
    before = TensorStore(site.parent / "store").usage().distinct_bytes
    _import(site, "acme/2")
    assert TensorStore(site.parent / "store").usage().distinct_bytes - before == 32 * 64 * 4


def test_a_missing_trunk_is_named_and_the_model_is_served_once_it_is_there(site: Path) -> None:
    trunk = _trunk_folder(site)
    trunk.rename(site / "away")
    with pytest.raises(UnknownTarget, match=f"trunk {trunk.name}, which is not at .*flatshare deploy"):
        _import(site, "acme/1")
    (site / "away").rename(trunk)
    assert _import(site, "acme/1") == _import(site, "plain")


def test_a_damaged_trunk_is_not_used_and_a_mended_one_is(site: Path) -> None:
    pack = _trunk_folder(site) / PACK
    content = pack.read_bytes()
    pack.write_bytes(content[:4] + b"?" + content[5:])
    with pytest.raises(StoreUnavailable, match=r"cannot be used: .* was altered"):
        _import(site, "acme/1")
    pack.write_bytes(content)
    assert _import(site, "acme/1") == _import(site, "plain")


def test_a_trunk_that_changes_after_it_was_hashed_is_hashed_again(site: Path) -> None:
    _import(site, "acme/1")
    pack = _trunk_folder(site) / PACK
    content = pack.read_bytes()
    pack.unlink()
    pack.write_bytes(content[:4] + b"?" + content[5:])
    with pytest.raises(StoreUnavailable, match="was altered"):
        _import(site, "acme/2")


def test_nobody_is_served_a_tensor_of_others_by_knowing_its_digest(site: Path) -> None:
    _import(site, "acme/1")
    secret = next(tensor for tensor in read_listing(site / "acme/1" / LISTING).tensors if tensor.name == TUNED)
    _restate(site, "acme/2", digest=secret.digest, trunk=_trunk_folder(site).name)
    with pytest.raises(BadPackage, match="has tensors which it lacks"):
        _import(site, "acme/2")
    _restate(site, "acme/2", digest=secret.digest, trunk=None)
    with pytest.raises(BadPackage, match="is not what its digest says"):
        _import(site, "acme/2")


def test_a_tensor_of_another_shape_is_refused_though_its_digest_is_known(site: Path) -> None:
    _import(site, "acme/1")
    index = orjson.loads((_trunk_folder(site) / INDEX).read_bytes())
    other = next(tensor for tensor in index["tensors"] if tensor["shape"] == [32, 32])
    _restate(site, "acme/2", digest=other["digest"], trunk=_trunk_folder(site).name)
    with pytest.raises(BadPackage, match="is not what its digest says"):
        _import(site, "acme/2")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is damaged"),
        (b'{"flatshare_packed": 1, "tensors": [{"name": "a"}]}', "is damaged"),
        (b'{"flatshare_packed":1,"tensors":[{"name":"a","dtype":"F99","shape":[1],"digest":"' + b"0" * 64 + b'"}]}', "no type of tensors"),
        (b'{"flatshare_packed":1,"tensors":[{"name":"a","dtype":"F32","shape":[1],"digest":"' + b"0" * 64 + b'"}]}', "lacks the tensor"),
    ],
)
def test_a_listing_of_nonsense_is_refused(site: Path, content: bytes, sentence: str) -> None:
    (site / "acme/1" / LISTING).write_bytes(content)
    with pytest.raises(BadPackage, match=sentence):
        _import(site, "acme/1")


def test_an_architecture_without_a_graph_of_ours_is_refused_with_the_way_out(site: Path, tmp_path: Path) -> None:
    trunk = write_trunk([tmp_path / "base/model.safetensors"], site / TRUNKS)
    _pack(save_albert(tmp_path / "albert"), site / "acme/albert", trunk)
    with pytest.raises(UnsupportedModel, match="packs hold built-in architectures only: package it with --form folder"):
        _import(site, "acme/albert")


def test_a_listing_that_refers_to_many_trunks_is_refused(site: Path) -> None:
    listing = read_listing(site / "acme/1" / LISTING)
    tensors = tuple(msgspec.structs.replace(t, trunk=f"{i:032x}") for i, t in enumerate(listing.tensors))
    (site / "acme/1" / LISTING).write_bytes(msgspec.json.encode(Listing(1, tensors)))
    with pytest.raises(BadPackage, match="at most 8"):
        _import(site, "acme/1")
