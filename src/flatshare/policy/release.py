"""A model's versions and aliases: what each change makes of them. Pure, so that a database and an object store do the same.

Every change is either done as a whole or refused with a sentence; a change that has been done already changes nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from flatshare.core import naming
from flatshare.core.errors import BadInput, ReleaseConflict
from flatshare.core.ids import TargetModel
from flatshare.core.release import (
    Alias,
    Canary,
    Change,
    Event,
    ModelReleases,
    Promote,
    Ready,
    Reserve,
    Retire,
    RollBack,
    StartCanary,
    Version,
    VersionState,
)

_MAX_HISTORY = 1000
_MAX_BEFORE = 20
_SUFFIX = re.compile(r"|\.tar|\.tar\.gz|\.tar\.zst")


@dataclass(frozen=True, slots=True)
class By:
    """Who changes something, when, and why."""

    who: str
    at_s: float
    why: str = ""


def apply(releases: ModelReleases, change: Change, by: By) -> ModelReleases:
    """What comes of it; the very same object if there is nothing to do. Raises ReleaseConflict or BadInput."""
    made, what = _RULES[type(change)](releases, change)
    if what is None:
        return releases
    history = (*releases.history, Event(by.at_s, by.who, what, by.why[:1000]))[-_MAX_HISTORY:]
    return replace(made, revision=releases.revision + 1, history=history)


def reserved(releases: ModelReleases, digest: str) -> Version | None:
    """The version that this package has already, if it was not retired."""
    return next((v for v in releases.versions if v.digest == digest and v.state is not VersionState.RETIRED), None)


_Outcome = tuple[ModelReleases, str | None]  # what comes of it, and what was done; None: nothing


def _reserve(releases: ModelReleases, change: Reserve) -> _Outcome:
    if reserved(releases, change.digest) is not None:
        return releases, None
    if not change.parts or not _SUFFIX.fullmatch(change.suffix) or not re.fullmatch(r"[0-9a-f]{64}", change.digest):
        raise BadInput("a version needs the digest of its package, at least one part, and artifacts that are a folder or an archive")
    number = 1 + max((version.number for version in releases.versions), default=0)
    targets = {
        part: TargetModel(naming.labelled_target(releases.model, str(number), _checked_part(part)) + change.suffix) for part in change.parts
    }
    version = Version(number, change.digest, targets)
    return replace(releases, versions=(*releases.versions, version)), f"version {number} of digest {change.digest[:12]} begun"


def _ready(releases: ModelReleases, change: Ready) -> _Outcome:
    version = releases.version(change.version)
    if version.state is VersionState.READY:
        return releases, None
    if version.state is VersionState.RETIRED:
        raise ReleaseConflict(f"version {version.number} of {releases.model} was retired meanwhile: deploy again")
    return _with(releases, replace(version, state=VersionState.READY)), f"version {version.number} is ready"


def _promote(releases: ModelReleases, change: Promote) -> _Outcome:
    name = naming.checked_alias(change.alias)
    version, alias = _ready_version(releases, change.version), releases.aliases.get(name)
    if alias is not None and alias.version == version.number:
        if alias.canary is None:
            return releases, None
        return _aliased(releases, name, replace(alias, canary=None)), f"{name} stays version {version.number}, canary ended"
    before = () if alias is None else (*alias.before, alias.version)[-_MAX_BEFORE:]
    was = "" if alias is None else f", was {alias.version}"
    return _aliased(releases, name, Alias(version.number, before)), f"{name} is version {version.number}{was}"


def _roll_back(releases: ModelReleases, change: RollBack) -> _Outcome:
    alias = _alias(releases, change.alias)
    if alias.canary is not None and change.only_canary in {None, alias.canary.version}:
        what = f"canary of version {alias.canary.version} ended, {change.alias} stays version {alias.version}"
        return _aliased(releases, change.alias, replace(alias, canary=None)), what
    if change.only_canary is not None:
        return releases, None
    usable = [number for number in alias.before if releases.version(number).state is VersionState.READY]
    if not usable:
        raise ReleaseConflict(f"{releases.model}@{change.alias} has no earlier version to go back to: promote one by its number")
    before = alias.before[: len(alias.before) - 1 - alias.before[::-1].index(usable[-1])]
    return _aliased(
        releases, change.alias, Alias(usable[-1], before)
    ), f"{change.alias} went back to version {usable[-1]}, was {alias.version}"


def _canary(releases: ModelReleases, change: StartCanary) -> _Outcome:
    alias, version = _alias(releases, change.alias), _ready_version(releases, change.version)
    if not 0 < change.share < 1:
        raise BadInput(f"a canary answers a share between 0 and 1 of the calls, not {change.share}: promote it to answer all")
    if alias.version == version.number:
        raise ReleaseConflict(f"{releases.model}@{change.alias} is version {version.number} already: a canary is another one")
    canary = Canary(version.number, change.share, change.limits)
    if alias.canary == canary:
        return releases, None
    what = f"version {version.number} answers {change.share:.1%} of {change.alias}"
    return _aliased(releases, change.alias, replace(alias, canary=canary)), what


def _retire(releases: ModelReleases, change: Retire) -> _Outcome:
    version = releases.version(change.version)
    if version.state is VersionState.RETIRED:
        return releases, None
    for name, alias in releases.aliases.items():
        if version.number == alias.version or (alias.canary and version.number == alias.canary.version):
            raise ReleaseConflict(f"{releases.model}@{name} is answered by version {version.number}: promote another one first")
    return _with(releases, replace(version, state=VersionState.RETIRED)), f"version {version.number} retired"


_RULES: dict[type[Any], Callable[[ModelReleases, Any], _Outcome]] = {
    Reserve: _reserve,
    Ready: _ready,
    Promote: _promote,
    RollBack: _roll_back,
    StartCanary: _canary,
    Retire: _retire,
}


def _ready_version(releases: ModelReleases, number: int) -> Version:
    version = releases.version(number)
    if version.state is not VersionState.READY:
        raise ReleaseConflict(f"version {number} of {releases.model} is {version.state.value}: only one that has answered can be used")
    return version


def _alias(releases: ModelReleases, name: str) -> Alias:
    if name not in releases.aliases:
        known = ", ".join(sorted(releases.aliases)) or "none"
        raise ReleaseConflict(f"{releases.model} has no alias '{name}': it has {known}; promote a version to make one")
    return releases.aliases[name]


def _checked_part(part: str) -> str:
    if part and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", part):
        raise BadInput(f"part '{part[:80]}' must be 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', and begin with a letter or digit")
    return part


def _with(releases: ModelReleases, version: Version) -> ModelReleases:
    return replace(releases, versions=tuple(version if v.number == version.number else v for v in releases.versions))


def _aliased(releases: ModelReleases, name: str, alias: Alias) -> ModelReleases:
    return replace(releases, aliases={**releases.aliases, name: alias})
