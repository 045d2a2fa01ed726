"""Aliases where no gateway of ours looks them up: read from the record beside the artifacts, by the caller itself."""

import random
import time
from threading import Lock

import boto3
import msgspec
from botocore.exceptions import ClientError

from flatshare.core.errors import BadInput, ReleaseConflict, UnknownTarget
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.naming import parse_target
from flatshare.core.release import ModelReleases, record_key


class StoreResolver:
    """For `Models(…, resolver=StoreResolver("s3://bucket/models/"))`: endpoints on AWS. May be used from several threads.

    A record is read again after `fresh_s`, so callers notice a promotion that late. A canary's share is drawn here; nobody watches it.
    """

    def __init__(self, base: str, *, fresh_s: float = 10.0) -> None:
        bucket, _, folder = base.removeprefix("s3://").partition("/")
        if not base.startswith("s3://") or not bucket:
            raise BadInput(f"'{base}' must be s3://BUCKET/FOLDER/, as --prefix was for the deployment")
        self._bucket = bucket
        self._folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        self._fresh_s = fresh_s
        self._s3 = boto3.client("s3")
        self._known: dict[str, tuple[float, ModelReleases]] = {}
        self._lock = Lock()

    def resolve(self, endpoint: EndpointName, target: TargetModel) -> TargetModel:
        """The artifact that the target model stands for now. Raises UnknownTarget or ReleaseConflict."""
        labelled = parse_target(target)
        if labelled is None:
            return target
        releases = self._releases(labelled.model)
        if releases.endpoint != endpoint:
            raise ReleaseConflict(f"{labelled.model} is a {releases.kind} model of endpoint {releases.endpoint}, not of {endpoint}")
        found = releases.resolve(labelled.label, labelled.part, random.random())  # noqa: S311  # a split of traffic, not a secret
        if found is None:
            raise ReleaseConflict(f"{labelled.model} has no alias or version '{labelled.label}' with a part '{labelled.part}'")
        return found.target

    def _releases(self, model: str) -> ModelReleases:
        with self._lock:
            read_s, found = self._known.get(model, (0.0, None))
        if found is not None and time.monotonic() - read_s < self._fresh_s:
            return found
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=f"{self._folder}{record_key(model)}")
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"NoSuchKey", "NoSuchBucket", "404"}:
                raise
            raise UnknownTarget(f"no version of {model} was ever deployed below s3://{self._bucket}/{self._folder}") from error
        fresh = msgspec.json.decode(answer["Body"].read(), type=ModelReleases)
        with self._lock:
            self._known[model] = (time.monotonic(), fresh)
        return fresh
