"""The catalog: what an artifact became, what was refused, what weighs how much."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flatshare.core.ids import ArtifactUri, Digest, ModelDigest, TensorDigest
from flatshare.core.spec import ModelManifest, TensorPlace, TensorSpec
from flatshare.store.catalog import Catalog, Refusal, insert_model, insert_pack

URI = ArtifactUri("file:///m")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.db")


def tensor(name: str, size: int = 4) -> TensorSpec:
    return TensorSpec(name, TensorDigest(f"digest of {name}"), (size // 4,), size)


def manifest(name: str, *tensors: TensorSpec) -> ModelManifest:
    return ModelManifest(ModelDigest(name), "bert", Digest("g"), Digest("t"), tensors, 64, 32, False, 1_000, ("a note",))


def put(catalog: Catalog, model: ModelManifest, pack: str, uri: str = URI, version: str = "1") -> None:
    with catalog.transaction() as sql:
        insert_pack(sql, pack, 100, [(t, 64 * i) for i, t in enumerate(model.tensors)])
        insert_model(sql, model, 5.0)
    catalog.link_artifact(ArtifactUri(uri), version, model.digest)


def test_a_manifest_comes_back_as_it_went_in(catalog: Catalog) -> None:
    model = manifest("m", tensor("a"), tensor("b", 8))
    put(catalog, model, "p")
    assert catalog.manifest(model.digest) == model
    assert catalog.places(model.digest) == {"digest of a": TensorPlace("p", 0), "digest of b": TensorPlace("p", 64)}


def test_an_artifact_is_known_only_at_the_version_that_was_imported(catalog: Catalog) -> None:
    put(catalog, manifest("m"), "p")
    assert catalog.model_of(URI, "1") == "m"
    assert catalog.model_of(URI, "2") is None


def test_a_refusal_holds_until_the_artifact_changes_or_is_imported(catalog: Catalog) -> None:
    catalog.remember_refusal(URI, "1", Refusal("BadPackage", "it is broken"))
    assert catalog.refusal_of(URI, "1") == Refusal("BadPackage", "it is broken")
    assert catalog.refusal_of(URI, "2") is None
    put(catalog, manifest("m"), "p", version="2")
    assert catalog.refusal_of(URI, "1") is None


def test_a_tensor_stays_in_the_pack_that_brought_it(catalog: Catalog) -> None:
    put(catalog, manifest("m", tensor("a")), "p")
    put(catalog, manifest("n", tensor("a"), tensor("b")), "q", "file:///n")
    assert catalog.places(ModelDigest("n")) == {"digest of a": TensorPlace("p", 0), "digest of b": TensorPlace("q", 64)}


def test_usage_tells_what_sharing_saves(catalog: Catalog) -> None:
    put(catalog, manifest("m", tensor("a", 40)), "p")
    put(catalog, manifest("n", tensor("a", 40), tensor("b", 20)), "q", "file:///n")
    usage = catalog.usage()
    assert (usage.models, usage.sum_bytes, usage.distinct_bytes, usage.saved_bytes, usage.packs) == (2, 100, 60, 40, 2)
    assert usage.distinct_share == 0.6


def test_an_empty_catalog_weighs_nothing(catalog: Catalog) -> None:
    usage = catalog.usage()
    assert (usage.models, usage.sum_bytes, usage.pack_bytes, usage.distinct_share, catalog.disk_bytes()) == (0, 0, 0, 1.0, 0)
    assert catalog.models() == []


def test_models_are_listed_with_all_their_artifacts(catalog: Catalog) -> None:
    put(catalog, manifest("m"), "p", "file:///b")
    put(catalog, manifest("m"), "p", "file:///a")
    (listed,) = catalog.models()
    assert listed.uris == ("file:///a", "file:///b")


def test_a_load_is_noted(catalog: Catalog) -> None:
    put(catalog, manifest("m"), "p")
    catalog.touch(ModelDigest("m"), 99.0)
    assert catalog.models()[0].used_s == 99.0


def test_forgetting_an_artifact_says_if_there_was_one(catalog: Catalog) -> None:
    put(catalog, manifest("m"), "p")
    catalog.remember_refusal(ArtifactUri("file:///x"), "1", Refusal("BadPackage", "no"))
    assert catalog.forget_artifact(URI)
    assert catalog.forget_artifact(ArtifactUri("file:///x"))
    assert not catalog.forget_artifact(URI)


def test_a_transaction_that_fails_leaves_no_trace_and_no_lock(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.transaction() as sql:  # noqa: PT012  (the block is what is tested)
        insert_pack(sql, "p", 1, [])
        raise ZeroDivisionError
    assert catalog.pack_sizes() == {}
    put(catalog, manifest("m"), "p")


def test_a_transaction_that_cannot_be_committed_is_rolled_back(catalog: Catalog) -> None:
    with pytest.raises(sqlite3.IntegrityError), catalog.transaction() as sql:  # noqa: PT012  (the block is what is tested)
        sql.execute("PRAGMA defer_foreign_keys = ON")
        sql.execute("INSERT INTO artifacts VALUES ('u', '1', 'no such model')")
    put(catalog, manifest("m"), "p")
    assert catalog.model_of(ArtifactUri("u"), "1") is None


def test_processes_that_open_a_new_catalog_at_once_all_succeed(tmp_path: Path) -> None:
    code = "import sys; sys.stdin.read(); from pathlib import Path; from flatshare.store.catalog import Catalog; Catalog(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "catalog.db")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        process.stdin = None
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
