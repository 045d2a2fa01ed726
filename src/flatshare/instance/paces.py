"""Step 6c: how fast each model runs, as far as is known: what a run will take decides its class, its share and its deadline."""

from collections import OrderedDict

from flatshare.core.ids import ModelKey
from flatshare.policy import pace

_MOST = 10_000


class Paces:
    """By model; of one that never ran, the mean of all."""

    def __init__(self) -> None:
        self._all = pace.UNKNOWN
        self._by_model: OrderedDict[ModelKey, pace.Pace] = OrderedDict()

    def seconds(self, key: ModelKey, units: float) -> float:
        """What a run of so much will take."""
        return pace.seconds(self._by_model.get(key, self._all), units)

    def note(self, key: ModelKey, ran_s: float, units: float) -> None:
        self._all = pace.updated(self._all, ran_s, units)
        self._by_model[key] = pace.updated(self._by_model.get(key, self._all), ran_s, units)
        self._by_model.move_to_end(key)
        if len(self._by_model) > _MOST:
            self._by_model.popitem(last=False)
