"""Many packages in one go."""

from pathlib import Path

import orjson
import pytest
import yaml

from flatshare.core.errors import BadInput, BadPackage
from flatshare.package.build import Package
from flatshare.release.batch import deploy_all, read_batch
from flatshare.release.deploying import Wish
from flatshare.release.site import Site
from tests.release.conftest import Packages

pytestmark = pytest.mark.slow


def _write(file: Path, packages: list[Package]) -> Path:
    folders = [str(package.folder) for package in packages]
    text = {
        ".csv": "\n".join(["package", *folders]),
        ".yaml": yaml.safe_dump([{"package": folder} for folder in folders]),
        ".jsonl": "\n".join(orjson.dumps({"package": folder}).decode() for folder in folders),
    }
    file.write_text(text[file.suffix])
    return file


@pytest.mark.parametrize("name", ["batch.csv", "batch.yaml", "batch.jsonl"])
def test_a_file_lists_packages_in_three_forms(tmp_path: Path, packages: Packages, name: str) -> None:
    wanted = [packages("a/embedding", 1), packages("b/embedding", 1)]
    found = read_batch(_write(tmp_path / name, wanted))
    assert [package.record.model for package in found] == ["a/embedding", "b/embedding"]


def test_one_that_fails_does_not_keep_the_others(site: Site, packages: Packages, tmp_path: Path) -> None:
    good, bad = packages("a/embedding", 1), packages("b/embedding", 1)
    weights = bad.folder / "model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"oops")
    try:
        done = {one.model: one for one in deploy_all(site, [good, bad], Wish())}
    finally:
        weights.write_bytes(content)
    assert done["a/embedding"].deployed is not None
    assert "was altered" in done["b/embedding"].error


def test_two_packages_of_one_model_are_refused(tmp_path: Path, packages: Packages) -> None:
    with pytest.raises(BadInput, match="are both a/embedding: deploy one after the other"):
        read_batch(_write(tmp_path / "batch.csv", [packages("a/embedding", 1), packages("a/embedding", 2)]))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("b.csv", "folder\nx", "cannot be read"),
        ("b.csv", "package\n", "lists no package"),
        ("b.yaml", "- package: x\n  typo: 1", "unknown field `typo`"),
        ("b.yaml", "[", "cannot be read"),
        ("b.jsonl", '{"package"', "cannot be read"),
        ("b.txt", "x", "must end in"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read_batch(tmp_path / name)


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("package\nnowhere")
    with pytest.raises(BadPackage, match="nowhere' is no package"):
        read_batch(tmp_path / "b.csv")
