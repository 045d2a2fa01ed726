"""`flatshare bench replay`: recorded traffic through the policies that decide in an instance, and what nobody can know: the future.

Nothing is served: `policy/admit.py`, `evict.py` and `worth.py` decide as in a real instance, on a virtual clock. A trace is an .npz file
with `names` [clients], `rate` [clients, windows] in requests per second and `cv` of the same shape, the coefficient of variation of the
time between two requests; windows of ten minutes. Each client is taken for a model.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatshare.core.call import ModelSource
from flatshare.core.clock import ManualClock
from flatshare.core.errors import BadInput
from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.instance.demand import DemandBook
from flatshare.policy import admit
from flatshare.policy.admit import MemoryView, Need, Rules
from flatshare.policy.evict import Holders, Manners, Order, Resident

WINDOW_S = 600.0
SHARES = (0.1, 0.2, 0.4)
"""Of the catalogue: what memory holds."""
_UNIT = 1_000  # bytes of a model: all are alike here


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in the order of time."""

    at_s: NDArray[np.float64]
    model: NDArray[np.int64]
    models: int
    """Of those that are asked for at all."""


def read(path: Path, requests: int) -> Traffic:
    """So many requests of a trace, or somewhat more: all rates are divided alike, burstiness is kept. Raises BadInput.

    More, since each window begins near a request: of a bursty client, near a burst.
    """
    try:
        with np.load(path, allow_pickle=False) as trace:
            rate, cv = np.asarray(trace["rate"], np.float64), np.asarray(trace["cv"], np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path} is not a trace: an .npz file with names, rate and cv is wanted ({error})") from error
    if rate.ndim != 2 or rate.shape != cv.shape or not rate.sum() > 0:
        raise BadInput(f"{path}: rate and cv must be [clients, windows] with some requests, not {rate.shape} and {cv.shape}")
    rate *= requests / (rate.sum() * WINDOW_S)
    random, moments, models = np.random.default_rng(11), list[NDArray[np.float64]](), list[NDArray[np.int64]]()
    for client, window in np.argwhere(rate > 0):
        found = WINDOW_S * window + _arrivals(random, rate[client, window], cv[client, window])
        moments.append(found)
        models.append(np.full(len(found), client))
    at_s, model = np.concatenate(moments), np.concatenate(models)
    order = np.argsort(at_s, kind="stable")
    return Traffic(at_s[order], model[order], len(np.unique(model)))


def _arrivals(random: np.random.Generator, rate_rps: float, cv: float) -> NDArray[np.float64]:
    """Of one window: gaps are gamma distributed, and the first one has begun before the window."""
    shape = 1 / max(0.05, cv) ** 2
    count = int(2 * rate_rps * WINDOW_S + 12 * max(1.0, cv))
    moments = np.cumsum(random.gamma(shape, 1 / (rate_rps * shape), count)) - random.exponential(1 / rate_rps)
    return moments[(moments >= 0) & (moments < WINDOW_S)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of it."""

    requests: int
    cold: int
    """Requests that found their model absent, or still on its way."""
    loads: int

    @property
    def cold_percent(self) -> float:
        return 100 * self.cold / self.requests


def replay(traffic: Traffic, order: Order, places: int, load_s: float, progress: Callable[[], None] = lambda: None) -> Outcome:
    """With memory for so many models, each of which takes `load_s` to load."""
    instance, cold = _Instance(order, places, load_s), 0
    for number, (at_s, model) in enumerate(zip(traffic.at_s.tolist(), traffic.model.tolist(), strict=True)):
        cold += instance.ask(ModelKey(str(model)), at_s)
        if number % 10_000 == 0:
            progress()
    return Outcome(len(traffic.at_s), cold, instance.loads)


class _Instance:
    """Who is in memory, as the policies see it."""

    def __init__(self, order: Order, places: int, load_s: float) -> None:
        self._clock = ManualClock()
        self._demand = DemandBook(self._clock)
        self._load_s = load_s
        self._used_s: OrderedDict[ModelKey, float] = OrderedDict()
        self._ready_s: dict[ModelKey, float] = {}
        self._order = order
        self._memory = places * _UNIT
        self.loads = 0

    def ask(self, key: ModelKey, at_s: float) -> bool:
        """One request. Whether it has to wait for a load."""
        self._clock.advance(at_s - self._clock.monotonic_s())
        self._demand.visit(key, _SOURCE)
        is_absent = key not in self._used_s
        if is_absent:
            self._load(key, at_s)
        self._used_s[key] = at_s
        return is_absent or at_s < self._ready_s[key]

    def _load(self, key: ModelKey, at_s: float) -> None:
        self.loads += 1
        worth = self._demand.worth(key)
        found = admit.decide(self._view(at_s), Need(0, {}, {TensorDigest(key): _UNIT}, worth=worth))
        for victim in found.victims:
            self._demand.evicted(victim)
            del self._used_s[victim], self._ready_s[victim]
        self._ready_s[key] = at_s + self._load_s
        self._demand.loaded(key, self._load_s)

    def _view(self, at_s: float) -> MemoryView:
        is_value = self._order is Order.VALUE
        residents = tuple(
            Resident(key, used_s, 0, 0, {TensorDigest(key): _UNIT}, worth=self._demand.worth(key) if is_value else 0.0)
            for key, used_s in self._used_s.items()
        )
        holders = Holders(Counter({TensorDigest(key): 1 for key in self._used_s}))
        rules = Rules(Manners(self._order, at_s))
        mapped = _UNIT * len(self._used_s)
        return MemoryView(self._memory, self._memory, 0, 0, mapped, residents, holders, rules)


_SOURCE = ModelSource("file:///replayed", "file:///")


def clairvoyant(traffic: Traffic, places: int) -> Outcome:
    """Belady: whoever is wanted again last leaves. No policy loads less often."""
    models = traffic.model.tolist()
    following, last = [len(models)] * len(models), dict[int, int]()
    for number in range(len(models) - 1, -1, -1):
        following[number] = last.get(models[number], len(models))
        last[models[number]] = number
    next_use, loads = dict[int, int](), 0
    for number, model in enumerate(models):
        if model not in next_use:
            loads += 1
            if len(next_use) >= places:
                del next_use[max(next_use, key=next_use.__getitem__)]
        next_use[model] = following[number]
    return Outcome(len(models), loads, loads)


def run(path: Path, requests: int, load_s: float, begin: "Callable[[str, int], Callable[[], None]]") -> dict[str, float]:
    """Cold requests in percent, by share of memory and policy."""
    traffic, results = read(path, requests), dict[str, float]()
    results["requests"], results["models"] = float(len(traffic.at_s)), float(traffic.models)
    for share in SHARES:
        places = max(2, round(share * traffic.models))
        for order in (Order.LRU, Order.VALUE):
            step = begin(f"{order}, memory for {share:.0%}", 1 + len(traffic.at_s) // 10_000)
            found = replay(traffic, order, places, load_s, step)
            results[f"cold_percent_{order}_{share:.0%}"] = round(found.cold_percent, 2)
        results[f"cold_percent_clairvoyant_{share:.0%}"] = round(clairvoyant(traffic, places).cold_percent, 2)
    return results
