"""Which models lie below a prefix: what an operator uploaded, and not what tools left there."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flatshare.core.errors import Abandoned
from flatshare.core.spec import ModelSize
from flatshare.store.below import artifacts_in, known_below, sizes_below
from flatshare.store.tensors import TensorStore
from tests.checkpoints import imported, write_checkpoint

Lister = Callable[..., Iterator[ModelSize]]


def sizes(*paths: str) -> dict[str, int]:
    return dict(artifacts_in((tuple(path.split("/")), 10) for path in paths))


def never() -> bool:
    return False


def test_a_model_is_an_archive_or_the_uppermost_folder_with_a_file() -> None:
    found = sizes(
        "acme/query/config.json", "acme/query/1_Pooling/config.json", "acme/document.tar.gz", "zeta/config.pbtxt", "zeta/1/model.py"
    )
    assert found == {"acme/query": 20, "acme/document.tar.gz": 10, "zeta": 20}


def test_trunks_hidden_files_and_files_beside_the_models_are_none() -> None:
    assert sizes(".flatshare/trunks/ab/weights.pack", "README.md", "a/.git/config", "a/__pycache__/x.pyc") == {}


def test_an_archive_in_a_model_s_folder_belongs_to_it() -> None:
    assert sizes("a/config.json", "a/data.tar") == {"a": 20}


def test_a_prefix_where_nothing_lies_has_no_models(tmp_path: Path) -> None:
    TensorStore(tmp_path / "store")
    assert list(sizes_below(tmp_path / "store", f"file://{tmp_path}/none/", never, workers=2)) == []


def test_what_was_imported_here_counts_by_its_tensors_and_the_rest_by_its_files(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name, seed=ord(name))
    manifest = imported(store, tmp_path / "models" / "a").manifest
    known, unknown = sizes_below(tmp_path / "store", f"file://{tmp_path}/models", never, workers=2)
    assert known.tensors == manifest.distinct_pieces
    assert known.shared[f"workspaces {manifest.graph}"] == 2 * manifest.workspace_bytes
    files = sum(path.stat().st_size for path in (tmp_path / "models" / "b").rglob("*") if path.is_file())
    assert unknown.tensors == {f"file://{tmp_path}/models/b": files}


def test_what_was_imported_here_is_known_without_its_store_and_only_below_the_prefix(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    for folder in ("models", "models-of-others"):
        write_checkpoint(tmp_path / folder / "a", seed=1)
        manifest = imported(store, tmp_path / folder / "a").manifest
        shutil.rmtree(tmp_path / folder)
    (known,) = known_below(tmp_path / "store", f"file://{tmp_path}/models/", never, workers=2)
    assert known.tensors == manifest.distinct_pieces


@pytest.mark.parametrize("lister", [sizes_below, known_below])
def test_a_look_that_nobody_waits_for_ends(tmp_path: Path, lister: Lister) -> None:
    store = TensorStore(tmp_path / "store")
    write_checkpoint(tmp_path / "models" / "a", seed=1)
    imported(store, tmp_path / "models" / "a")
    with pytest.raises(Abandoned):
        list(lister(tmp_path / "store", f"file://{tmp_path}/models", lambda: True, workers=2))
