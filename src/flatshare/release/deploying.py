"""A package behind its endpoint: number → endpoint → artifacts → answers → alias. Each step may be done again, by anybody, at any time."""

import time
from dataclasses import dataclass, replace

import orjson

from flatshare.client.deploy import endpoint_prefix, ensure_endpoint
from flatshare.client.retrying import RETRIED, Patience, call_patiently
from flatshare.core import naming
from flatshare.core.errors import BadInput, CallFailed
from flatshare.core.ids import EndpointName
from flatshare.core.naming import DEFAULT_FLEET, LIVE
from flatshare.core.release import (
    DEFAULT_LIMITS,
    CanaryLimits,
    Change,
    ModelReleases,
    Promote,
    Ready,
    Reserve,
    StartCanary,
    Version,
    VersionState,
)
from flatshare.package.build import Form, Package, verify_package
from flatshare.policy import release
from flatshare.release import upload
from flatshare.release.site import Site, with_slash
from flatshare.store.shelf import Shelf

# 530 too: somebody who deploys the same at the same time may put a file in its place while the server reads it.
_PATIENCE = Patience(attempts=20, statuses=RETRIED | {530})


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to become of a package, beside its being there."""

    fleet: str = DEFAULT_FLEET
    alias: str | None = LIVE
    """Which alias is to stand for it; None leaves aliases alone."""
    canary_share: float | None = None
    limits: CanaryLimits = DEFAULT_LIMITS
    why: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a deployment would do."""

    model: str
    endpoint: EndpointName
    prefix: str
    is_new_endpoint: bool
    version: int
    is_new_version: bool
    send_bytes: int
    alias_from: int | None
    alias_to: int | None
    """None: the alias stays as it is."""

    @property
    def is_nothing(self) -> bool:
        return not (self.is_new_endpoint or self.is_new_version or self.send_bytes or self.alias_to is not None)


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a deployment did."""

    model: str
    version: int
    endpoint: EndpointName
    is_new_version: bool
    sent_bytes: int
    first_answer_ms: float
    """Of the slowest part, import and load included."""


def difference(site: Site, package: Package, wish: Wish) -> Difference:
    """Look, and change nothing."""
    record = package.record
    endpoint, prefix = _place(site, record.kind, wish)
    releases = site.book.find(record.model)
    known = None if releases is None else release.reserved(releases, record.digest)
    number = known.number if known else 1 + max((v.number for v in releases.versions), default=0) if releases else 1
    planned = known or release.apply(_blank(record.model, record.kind, endpoint), _reserve(package), release.By("", 0.0)).versions[0]
    files = upload.transfers(package, planned)
    todo = upload.missing(Shelf(prefix), planned, files) if known else files
    alias = releases.aliases.get(wish.alias or "") if releases else None
    stays = wish.alias is None or (wish.canary_share is None and alias is not None and alias.version == number and alias.canary is None)
    return Difference(
        model=record.model,
        endpoint=endpoint,
        prefix=prefix,
        is_new_endpoint=endpoint_prefix(site.sagemaker, endpoint) is None,
        version=number,
        is_new_version=known is None,
        send_bytes=sum(one.size_bytes for one in todo) + sum(t.size_bytes for t in upload.missing_trunks(Shelf(prefix), package)),
        alias_from=alias.version if alias else None,
        alias_to=None if stays else number,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint that is in service, and where its models lie."""

    endpoint: EndpointName
    prefix: str


def deploy(site: Site, package: Package, wish: Wish, place: Place | None = None) -> Deployed:
    """Bring it about. Callers go on being answered by what was there until the new version has answered.

    `place` is what `ready_place` said for packages of this kind; None asks it. Raises an error of `core/errors.py` or of boto3; a
    second try goes on where the first broke off.
    """
    record = package.record
    _require_form(site, package)
    verify_package(package)
    place = place or ready_place(site, record.kind, wish)
    endpoint, shelf = place.endpoint, Shelf(place.prefix)
    sent = upload.send_trunks(shelf, package)
    releases = _changed(site, package, endpoint, _reserve(package), wish.why)
    version = release.reserved(releases, record.digest)
    assert version is not None, "a number was given and is not there. This is a bug."
    sent += upload.upload(shelf, version, upload.transfers(package, version))
    took_ms = max(_first_answer_ms(site, package, endpoint, version, part.name) for part in record.parts)
    _changed(site, package, endpoint, Ready(version.number), wish.why)
    _point(site, package, endpoint, version, wish)
    return Deployed(record.model, version.number, endpoint, version.state is VersionState.UPLOADING, sent, took_ms)


def ready_place(site: Site, kind: str, wish: Wish) -> Place:
    """The endpoint for models of this kind, made if it is missing. Raises an error before that if its prefix cannot be written to."""
    endpoint, prefix = _place(site, kind, wish)
    if endpoint_prefix(site.sagemaker, endpoint) is None:
        upload.require_writable(Shelf(prefix))  # or an endpoint would be left over a place where no model can be put
    ensure_endpoint(site.sagemaker, replace(site.plan, name=endpoint, prefix=prefix))
    # Somebody may have made it at the same time, for another place.
    return Place(endpoint, with_slash(endpoint_prefix(site.sagemaker, endpoint) or prefix))


def _point(site: Site, package: Package, endpoint: EndpointName, version: Version, wish: Wish) -> None:
    """Let the alias stand for it, or a share of the alias's calls come to it."""
    if wish.alias is None:
        return
    change: Change = Promote(version.number, wish.alias)
    if wish.canary_share is not None:
        change = StartCanary(version.number, wish.canary_share, wish.alias, wish.limits)
    _changed(site, package, endpoint, change, wish.why)


def _place(site: Site, kind: str, wish: Wish) -> tuple[EndpointName, str]:
    """The endpoint, and where its models lie: an existing one knows."""
    endpoint = naming.endpoint_name(kind, wish.fleet)
    found = endpoint_prefix(site.sagemaker, endpoint)
    return endpoint, with_slash(found or f"{site.base}{endpoint}")


def _require_form(site: Site, package: Package) -> None:
    if not site.takes_folders and package.record.form is not Form.TAR_GZ:
        raise BadInput(
            f"'{package.folder}' holds artifacts as {package.record.form.value}, SageMaker takes tar.gz: package it with --form tar.gz"
        )


def _reserve(package: Package) -> Reserve:
    return Reserve(package.record.digest, tuple(part.name for part in package.record.parts), package.record.form.suffix)


def _changed(site: Site, package: Package, endpoint: EndpointName, change: Change, why: str) -> ModelReleases:
    return site.book.change(package.record.model, change, why=why, kind=package.record.kind, endpoint=endpoint)


def _blank(model: str, kind: str, endpoint: EndpointName) -> ModelReleases:
    return ModelReleases(model, kind, endpoint)


def _first_answer_ms(site: Site, package: Package, endpoint: EndpointName, version: Version, part: str) -> float:
    """Call until the artifact answers its sample, with the weights that answered when the package was made."""
    body, target = orjson.dumps(package.record.sample_of(part)), version.targets[part]
    started_s = time.perf_counter()
    answer = call_patiently(
        lambda: site.runtime.invoke_endpoint(EndpointName=endpoint, TargetModel=target, ContentType="application/json", Body=body),
        _PATIENCE,
    )
    answer["Body"].read()
    digest = answer["ResponseMetadata"]["HTTPHeaders"].get("x-flatshare-model-digest")
    expected = package.record.answered_as[part]
    if site.is_ours and digest != expected:
        raise CallFailed(f"{target} answers with weights {str(digest)[:12]}, the package has {expected[:12]}: what lies there was altered")
    return 1e3 * (time.perf_counter() - started_s)
