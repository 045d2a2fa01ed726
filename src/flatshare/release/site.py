"""Where models are deployed to: a flatshare server, or AWS. One code path, another address."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from flatshare.client.aws import aws_client, runtime_client
from flatshare.client.deploy import IMAGE, ROLE, EndpointPlan, Pace
from flatshare.client.releases import ServerBook
from flatshare.core.errors import BadInput
from flatshare.release.books import Book, StoreBook

_AWS_PACE = Pace(delay_s=15.0, attempts=120)  # an endpoint on AWS takes five to ten minutes


@dataclass(frozen=True, slots=True)
class Site:
    """What a deployment needs to know of the place."""

    sagemaker: Any
    runtime: Any
    book: Book
    base: str
    """Below it lies a folder per endpoint."""
    plan: EndpointPlan
    """Of an endpoint that is to be made; its name and prefix are filled in then."""
    takes_folders: bool
    is_ours: bool
    """Whether answers say which weights gave them."""


def flatshare_site(url: str, base: str | None = None) -> Site:
    """A server of ours. Models lie in ./models unless said otherwise; an endpoint that exists knows its own place."""
    place = with_slash(base or f"file://{Path.cwd() / 'models'}")
    return Site(
        aws_client("sagemaker", url), runtime_client(url), ServerBook(url), place, EndpointPlan("", ""), takes_folders=True, is_ours=True
    )


def aws_site(base: str | None, *, role: str | None, image: str | None, instance_type: str | None) -> Site:
    """AWS, by the addresses and credentials that boto3 finds. Raises BadInput for what only the caller can know."""
    if not base or not base.startswith("s3://"):
        raise BadInput("on AWS the models lie in S3: give --prefix s3://BUCKET/FOLDER/")
    plan = EndpointPlan("", "", image=image or IMAGE, role=role or ROLE, instance_type=instance_type or "", pace=_AWS_PACE)
    return Site(
        boto3.client("sagemaker"), runtime_client(None), StoreBook(base), with_slash(base), plan, takes_folders=False, is_ours=False
    )


def with_slash(uri: str) -> str:
    return uri.rstrip("/") + "/"
