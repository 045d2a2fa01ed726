"""What is known of a model's versions: which there are, which one an alias stands for, and how it came to be.

One record per model. It lies in control's database, or, where there is no control plane of ours, as an object beside the artifacts.
"""

from enum import StrEnum

import msgspec

from flatshare.core.errors import ReleaseConflict
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.naming import LIVE

RECORDS = ".flatshare/releases/"
"""Where records lie beside artifacts; what begins with a dot is no model."""


def record_key(model: str) -> str:
    return f"{RECORDS}{model}.json"


class VersionState(StrEnum):
    UPLOADING = "uploading"
    """Its number is taken; its artifacts are on their way, or somebody gave up."""
    READY = "ready"
    """Each of its artifacts has answered."""
    RETIRED = "retired"
    """Its artifacts are gone, or about to go."""


class Version(msgspec.Struct, frozen=True):
    """One deployment of a model."""

    number: int
    digest: str
    """Of the package."""
    targets: dict[str, TargetModel]
    """By part, the key of its artifact below the endpoint's prefix."""
    state: VersionState = VersionState.UPLOADING


class CanaryLimits(msgspec.Struct, frozen=True):
    """When the way back is taken. Each is asked once `min_calls` have been seen."""

    min_calls: int = 20
    max_more_errors: float = 0.05
    """Share of calls that may fail beyond the share that fails on the old version."""
    max_slowdown: float = 2.0
    """Mean time of warm calls, as a multiple of the old version's."""
    max_disagreement: float | None = None
    """Share of compared answers that may differ from the old version's; None compares nothing."""


DEFAULT_LIMITS = CanaryLimits()


class Canary(msgspec.Struct, frozen=True):
    """A version on trial behind an alias."""

    version: int
    share: float
    """Of the alias's calls."""
    limits: CanaryLimits = DEFAULT_LIMITS


class Alias(msgspec.Struct, frozen=True):
    """A word that stands for a version."""

    version: int
    before: tuple[int, ...] = ()
    """What it stood for earlier, the latest last: the way back."""
    canary: Canary | None = None


class Event(msgspec.Struct, frozen=True):
    """Who did what, when, and why."""

    at_s: float
    who: str
    what: str
    why: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """What a labelled target model stands for at this moment."""

    target: TargetModel
    version: int
    alias: str = ""
    is_canary: bool = False


class ModelReleases(msgspec.Struct, frozen=True):
    """All of one model."""

    model: str
    kind: str
    endpoint: EndpointName
    revision: int = 0
    """Counts the changes, so that a change that saw an older record is refused."""
    versions: tuple[Version, ...] = ()
    aliases: dict[str, Alias] = {}
    history: tuple[Event, ...] = ()

    def version(self, number: int) -> Version:
        """Raises ReleaseConflict, with what there is."""
        for version in self.versions:
            if version.number == number:
                return version
        known = ", ".join(str(version.number) for version in self.versions) or "none"
        raise ReleaseConflict(f"{self.model} has no version {number}: it has {known}")

    def resolve(self, label: str, part: str, point: float) -> Resolved | None:
        """The artifact behind a version's number or an alias, a canary drawn by `point` in [0, 1). None if nothing is meant by it."""
        alias = self.aliases.get(label)
        is_canary = alias is not None and alias.canary is not None and point < alias.canary.share
        if alias is None:
            number = int(label) if label.isdigit() and len(label) < 10 else 0
        else:
            number = alias.canary.version if alias.canary is not None and is_canary else alias.version
        version = next((v for v in self.versions if v.number == number), None)
        target = None if version is None else _target_of(version, part)
        return None if target is None else Resolved(target, number, label if alias else "", is_canary)


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Take a number for a package; the same package again has the same number."""

    digest: str
    parts: tuple[str, ...]
    suffix: str
    """Of its artifacts: "", ".tar" or ".tar.gz"."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Every artifact of the version has answered."""

    version: int


class Promote(msgspec.Struct, frozen=True, tag="promote"):
    """Let the alias stand for the version."""

    version: int
    alias: str = LIVE


class RollBack(msgspec.Struct, frozen=True, tag="roll_back"):
    """End a canary; without one, let the alias stand for what it stood for before."""

    alias: str = LIVE
    only_canary: int | None = None
    """Nothing else than the canary of this version: what a watcher means."""


class StartCanary(msgspec.Struct, frozen=True, tag="canary"):
    """Let a version answer a share of the alias's calls."""

    version: int
    share: float
    alias: str = LIVE
    limits: CanaryLimits = DEFAULT_LIMITS


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Give up a version that no alias stands for."""

    version: int


Change = Reserve | Ready | Promote | RollBack | StartCanary | Retire


class ChangeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal"):
    """A change as it travels to control. `EndpointName` is what grants are asked for."""

    model: str
    change: Change
    why: str = ""
    who: str = ""
    """Counts only if calls are not authenticated."""
    kind: str = ""
    """With `endpoint_name`: needed for the first change of a model."""
    endpoint_name: str = ""


def _target_of(version: Version, part: str) -> TargetModel | None:
    """A model with one artifact answers for every part."""
    if version.state is VersionState.RETIRED:
        return None
    return version.targets.get(part, version.targets.get("") if len(version.targets) == 1 else None)
