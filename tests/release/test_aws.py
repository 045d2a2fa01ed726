"""The same deployment on AWS, as far as a mock of it goes: boto3 and the stores find it by the environment, nothing else is different."""

import boto3
import pytest
import requests

from flatshare.client import Models
from flatshare.client.aws_releases import StoreResolver
from flatshare.core.errors import BadInput, ReleaseConflict
from flatshare.core.ids import TargetModel
from flatshare.core.release import Promote, Retire, RollBack, StartCanary
from flatshare.release.books import StoreBook
from flatshare.release.deploying import Wish, deploy, difference
from flatshare.release.retiring import remove_artifacts
from flatshare.release.site import Site, aws_site
from flatshare.store.shelf import Shelf
from tests.release.conftest import Packages

pytestmark = pytest.mark.slow
VECTORS = '{"embeddings": [[1.0, 2.0]]}'


@pytest.fixture
def base(at_aws: str) -> str:
    return f"s3://{at_aws}/models/"


@pytest.fixture
def aws(base: str) -> Site:
    return aws_site(base, role="arn:aws:iam::123456789012:role/models", image="account/image:1", instance_type="ml.g4dn.xlarge")


@pytest.fixture
def answers(at_aws: str, mock_aws: str) -> None:
    """What the mock's runtime answers to everybody."""
    said = {"results": [{"Body": VECTORS, "ContentType": "application/json", "InvokedProductionVariant": "v", "CustomAttributes": ""}] * 50}
    requests.post(f"{mock_aws}/moto-api/static/sagemaker/endpoint-results", json=said, timeout=10).raise_for_status()


def test_endpoint_artifact_and_record_are_on_aws_afterwards(aws: Site, base: str, packages: Packages) -> None:
    package = packages("acme/embedding", 1, "tar.gz")
    assert difference(aws, package, Wish()).is_new_endpoint
    done = deploy(aws, package, Wish(why="first"))
    assert (done.version, done.endpoint) == (1, "flatshare-embedding")
    container = boto3.client("sagemaker").describe_model(ModelName="flatshare-embedding")["PrimaryContainer"]
    assert (container["Mode"], container["ModelDataUrl"], container["Image"]) == (
        "MultiModel",
        f"{base}flatshare-embedding/",
        "account/image:1",
    )
    assert list(Shelf(f"{base}flatshare-embedding").sizes("acme")) == ["acme/embedding@1.tar.gz"]
    assert difference(aws, package, Wish()).is_nothing
    assert deploy(aws, package, Wish()).sent_bytes == 0


def test_versions_move_as_they_do_on_a_server_of_ours(aws: Site, packages: Packages, base: str) -> None:
    for seed in (1, 2):
        deploy(aws, packages("acme/embedding", seed, "tar.gz"), Wish())
    resolver = StoreResolver(base, fresh_s=0.0)
    endpoint = boto3.client("sagemaker").list_endpoints()["Endpoints"][0]["EndpointName"]

    def live() -> set[str]:
        return {resolver.resolve(endpoint, TargetModel("acme/embedding@live/query")) for _ in range(60)}

    assert live() == {"acme/embedding@2.tar.gz"}
    aws.book.change("acme/embedding", RollBack(), why="worse")
    assert live() == {"acme/embedding@1.tar.gz"}
    aws.book.change("acme/embedding", StartCanary(2, 0.5))
    assert live() == {"acme/embedding@1.tar.gz", "acme/embedding@2.tar.gz"}
    aws.book.change("acme/embedding", RollBack())
    releases = aws.book.change("acme/embedding", Retire(2))
    remove_artifacts(aws, releases, 2)
    assert list(Shelf(f"{base}flatshare-embedding").sizes("acme")) == ["acme/embedding@1.tar.gz"]
    assert [found.model for found in aws.book.all()] == ["acme/embedding"]


def test_callers_use_the_same_object_and_name_no_endpoint(aws: Site, base: str, packages: Packages, answers: None) -> None:
    deploy(aws, packages("acme/embedding", 1, "tar.gz"), Wish())
    with Models("acme", resolver=StoreResolver(base)) as models:
        assert models.embed("hello").vectors.tolist() == [[1.0, 2.0]]


def test_two_who_change_a_record_at_once_both_get_through(base: str, aws: Site, packages: Packages) -> None:
    for seed in (1, 2):
        deploy(aws, packages("acme/embedding", seed, "tar.gz"), Wish())
    first, second = StoreBook(base), StoreBook(base)
    find = first._shelf.get
    calls = list[str]()

    def get_while_another_writes(key: str) -> object:
        found = find(key)
        if not calls:
            second.change("acme/embedding", Promote(1, "other"))
        calls.append(key)
        return found

    first._shelf.get = get_while_another_writes  # type: ignore[method-assign,assignment]  # the moment between reading and writing
    releases = first.change("acme/embedding", Promote(1))
    assert len(calls) == 2
    assert (releases.aliases["live"].version, releases.aliases["other"].version) == (1, 1)


def test_what_sagemaker_does_not_take_is_said_before_anything_is_made(aws: Site, packages: Packages) -> None:
    with pytest.raises(BadInput, match=r"SageMaker takes tar\.gz: package it with --form tar\.gz"):
        deploy(aws, packages("acme/embedding", 1, "folder"), Wish())
    assert boto3.client("sagemaker").list_endpoints()["Endpoints"] == []
    with pytest.raises(BadInput, match="give --prefix s3://"):
        aws_site(None, role=None, image=None, instance_type=None)


def test_an_alias_that_nobody_made_is_named(aws: Site, base: str, packages: Packages) -> None:
    deploy(aws, packages("acme/embedding", 1, "tar.gz"), Wish(alias=None))
    with pytest.raises(ReleaseConflict, match="has no alias or version 'live'"):
        StoreResolver(base).resolve(
            deploy(aws, packages("acme/embedding", 1, "tar.gz"), Wish(alias=None)).endpoint, TargetModel("acme/embedding@live")
        )
