"""`flatshare deploy PACKAGE` and `flatshare release`, against a real server."""

from pathlib import Path

import pytest

from flatshare.package.build import Package
from flatshare.release.packaging import PackageRequest, make_package
from tests.cli.conftest import Flatshare
from tests.e2e.checkpoints import write_checkpoint

pytestmark = pytest.mark.slow
MODEL = "shop/embedding"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Package]:
    """Two packages of one model."""
    folder = tmp_path_factory.mktemp("packages")
    requests = [
        PackageRequest(
            MODEL, "encoder", {"": write_checkpoint(folder / f"c{seed}", seed)}, {}, None, "", "folder", folder / f"{seed}.package"
        )
        for seed in (7001, 7002)
    ]
    return [make_package(request) for request in requests]


@pytest.fixture
def deploy(at_server: Flatshare, made: list[Package], cli_data: Path) -> Flatshare:
    """`flatshare deploy` of the package with this index."""

    def run(index: int, *options: str) -> object:
        return at_server("deploy", str(made[index].folder), "--prefix", f"file://{cli_data}/packages", "--fleet", "clitest", *options)

    return run  # type: ignore[return-value]  # an index in place of the first argument


def test_the_whole_life_of_a_model(at_server: Flatshare, deploy: Flatshare) -> None:
    assert f"{MODEL}@1: would create endpoint clitest-embedding" in deploy(0, "--dry-run").said
    assert f"{MODEL}@1: " in deploy(0, "--why", "first").said
    assert "was there already" in deploy(0).said
    assert "nothing to do" in deploy(0, "--dry-run").said
    assert deploy(1, "--canary", "5").status == 0
    assert "1, 5.0% to 2" in at_server("release", "list").said
    assert at_server("release", "promote", MODEL, "2").said == f"{MODEL}@live → 2"
    assert at_server("release", "rollback", MODEL, "--why", "worse").said == f"{MODEL}@live → 1"
    assert at_server("release", "canary", MODEL, "2", "10", "--max-disagreement", "1").said == f"{MODEL}@live → 1, 10.0% to 2"
    refused = at_server("release", "retire", MODEL, "2")
    assert (refused.status, "promote another one first" in refused.said) == (1, True)
    assert at_server("release", "rollback", MODEL).status == 0
    assert at_server("release", "retire", MODEL, "2").status == 0
    said = at_server("release", "history", MODEL).said
    for event in ("version 1 of digest", "live is version 1: first", "live went back to version 1, was 2: worse", "version 2 retired"):
        assert event in said


def test_a_model_that_was_never_deployed_has_no_versions(at_server: Flatshare) -> None:
    run = at_server("release", "promote", "nobody/x", "1")
    assert (run.status, "no version of nobody/x was ever deployed here" in run.said) == (1, True)
    assert at_server("release", "history", "nobody/x").out == ""


def test_a_batch_is_deployed_with_a_summary(at_server: Flatshare, made: list[Package], cli_data: Path, tmp_path: Path) -> None:
    (tmp_path / "batch.csv").write_text(f"package\n{made[0].folder}\n")
    run = at_server("deploy", "--batch", "batch.csv", "--prefix", f"file://{cli_data}/packages", "--fleet", "clitest", "--json")
    assert (run.status, run.json[0]["model"], run.json[0]["error"]) == (0, MODEL, "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--endpoint", "e"), "a package's endpoint follows from its kind"),
        (("--target", "acme/x"), "packages are deployed to flatshare or aws"),
        (("--batch", "b.csv"), "give packages or --batch, not both"),
        ((".",), "packages and checkpoints are deployed by a call each"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(deploy: Flatshare, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "b.csv").write_text("package\n")
    run = deploy(0, *options)
    assert (run.status, sentence in run.said) == (2, True), run.said


def test_on_aws_the_place_must_be_named(deploy: Flatshare, at_server: Flatshare, made: list[Package]) -> None:
    run = at_server("deploy", str(made[0].folder), "--target", "aws")
    assert (run.status, "give --prefix s3://BUCKET/FOLDER/" in run.said) == (1, True), run.said


def test_a_server_that_is_not_there_is_said(flatshare: Flatshare) -> None:
    run = flatshare("release", "list", "--url", "http://127.0.0.1:9")
    assert (run.status, "Start a server with 'flatshare serve'" in run.said) == (1, True), run.said
