"""How often each model was asked, and how long it took: what the Open Inference statistics extension reports."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

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
    """One model, since the gateway began."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    waited: Duration = field(default_factory=Duration)
    """The time of successful calls outside of the engine: transport, queues, and loading if it was cold."""
    ran: Duration = field(default_factory=Duration)
    """Tokenise + run."""
    last_wall_ms: int = 0


@dataclass(frozen=True, slots=True)
class CountedModel:
    endpoint: EndpointName
    target: TargetModel
    counts: ModelCounts


class ModelStatistics:
    """Owned by the gateway's event loop. Bounded, since models come and go by the thousand."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[EndpointName, TargetModel], ModelCounts] = OrderedDict()

    def note(self, endpoint: EndpointName, target: TargetModel, *, is_success: bool, took_s: float, ran_s: float) -> None:
        key = endpoint, target
        counts = self._models.get(key)
        if counts is None:
            counts = self._models[key] = ModelCounts()
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(key)
        if not is_success:
            counts.fail.add(took_s)
            return
        counts.success.add(took_s)
        counts.ran.add(ran_s)
        counts.waited.add(max(0.0, took_s - ran_s))
        counts.last_wall_ms = round(1e3 * time.time())

    def of(self, endpoint: EndpointName, target: TargetModel) -> ModelCounts:
        """Zeros for a model that was not asked."""
        return self._models.get((endpoint, target), ModelCounts())

    def __iter__(self) -> Iterator[CountedModel]:
        return (CountedModel(endpoint, target, counts) for (endpoint, target), counts in self._models.items())
