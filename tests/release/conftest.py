"""Packages of tiny encoders, a real server that they are deployed to, and a mock AWS."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from flatshare.bench.server import RunningServer
from flatshare.package.build import Package
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.release.site import Site, flatshare_site
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import serving
from tests.release.moto_server import running_moto

Packages = Callable[..., Package]


@pytest.fixture(autouse=True)
def _no_aws_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A package by model, seed and form, made once: each takes a second of a real instance."""
    made: dict[tuple[object, ...], Package] = {}

    def make(model: str = "acme/embedding", seed: int = 1, form: str = "folder") -> Package:
        key = (model, seed, form)
        if key not in made:
            folder = tmp_path_factory.mktemp("package")
            source = write_checkpoint(folder / "source", 5000 + seed)
            request = PackageRequest(model, "encoder", {"": source}, {}, None, "", form, folder / "made.package")
            made[key] = make_package(request)
        return made[key]

    return make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def site(server: RunningServer, site_folder: Path) -> Site:
    return flatshare_site(server.url, f"file://{site_folder}")


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
def mock_aws() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture
def at_aws(mock_aws: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """boto3 and the stores find the mock by the environment, as they would find AWS. The bucket."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": mock_aws,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"{mock_aws}/moto-api/reset", timeout=10).raise_for_status()
    bucket = f"models-{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return bucket
