"""How often each model was asked, and how long it took: what the Open Inference statistics extension reports."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from flatshare.core.call import FIRST_VERSION
from flatshare.core.ids import EndpointName, TargetModel

_MOST_MODELS = 10_000  # the models asked longest ago are forgotten first: callers choose the names


@dataclass(slots=True)
class Duration:
    """A count of events, and their time together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(1e9 * seconds)


@dataclass(slots=True)
class ModelCounts:
    """One version of a model, since the gateway began."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    waited: Duration = field(default_factory=Duration)
    """The time of successful calls outside of the engine: transport, queues, and loading if it was cold."""
    ran: Duration = field(default_factory=Duration)
    """Tokenise + run."""
    last_wall_ms: int = 0


@dataclass(frozen=True, slots=True)
class CountedVersion:
    """One version of a model that was asked."""

    endpoint: EndpointName
    target: TargetModel
    version: str
    counts: ModelCounts


class ModelStatistics:
    """Owned by the gateway's event loop. Bounded, since models come and go by the thousand."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[EndpointName, TargetModel], dict[str, ModelCounts]] = OrderedDict()

    def succeeded(self, endpoint: EndpointName, target: TargetModel, version: str, *, took_s: float, ran_s: float) -> None:
        """`version` is what the instance says it was."""
        counts = self._versions(endpoint, target).setdefault(version, ModelCounts())
        counts.success.add(took_s)
        counts.ran.add(ran_s)
        counts.waited.add(max(0.0, took_s - ran_s))
        counts.last_wall_ms = round(1e3 * time.time())

    def failed(self, endpoint: EndpointName, target: TargetModel, asked: str, *, took_s: float) -> None:
        """`asked` is what the caller wrote. Only a version that has answered gets a row of its own: callers invent them."""
        versions = self._versions(endpoint, target)
        version = asked if asked in versions else next(reversed(versions), FIRST_VERSION)
        versions.setdefault(version, ModelCounts()).fail.add(took_s)

    def of(self, endpoint: EndpointName, target: TargetModel, version: str) -> list[CountedVersion]:
        """Of one version, or of all that were asked if it is empty. Zeros for what was not asked."""
        versions = self._models.get((endpoint, target), {})
        wanted = [version] if version else [*versions] or [FIRST_VERSION]
        return [CountedVersion(endpoint, target, each, versions.get(each, ModelCounts())) for each in wanted]

    def __iter__(self) -> Iterator[CountedVersion]:
        return (counted for endpoint, target in self._models for counted in self.of(endpoint, target, ""))

    def _versions(self, endpoint: EndpointName, target: TargetModel) -> dict[str, ModelCounts]:
        key = endpoint, target
        versions = self._models.get(key)
        if versions is None:
            versions = self._models[key] = {}
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(key)
        return versions
