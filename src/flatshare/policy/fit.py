"""Which models fit a shared endpoint: the four criteria of a multi-model endpoint, asked of a model's traffic and needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HOUR_S = 3600.0
_MIN_CALLS_PER_DAY = 24.0  # rarer, and even a model that is never resident costs nobody much
_MIN_ACTIVE_SHARE = 0.2  # of the hours seen: office hours alone are 0.24


@dataclass(frozen=True, slots=True)
class ModelTraffic:
    """One model's calls, and what its owner says of it; None is not said."""

    model: str
    times_s: tuple[float, ...]
    is_cold_tolerated: bool | None = None
    is_accelerated: bool | None = None
    runtime: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """By criterion: true, false, or None where the traffic does not tell."""

    model: str
    tolerates_cold: bool | None
    is_steady: bool
    needs_accelerator: bool | None
    shares_runtime: bool | None
    calls_per_day: float
    active_share: float

    @property
    def fits(self) -> bool:
        """Nothing speaks against it."""
        return False not in (self.tolerates_cold, self.is_steady, self.needs_accelerator, self.shares_runtime)


def judge(models: Sequence[ModelTraffic]) -> tuple[Verdict, ...]:
    """In the models' order. The time that was looked at is the same for all: from the first call of any to the last of any."""
    times = [time_s for model in models for time_s in model.times_s]
    first_s, span_s = min(times, default=0.0), max(times, default=0.0) - min(times, default=0.0)
    hours = max(1, int(span_s // _HOUR_S) + 1)
    runtimes = Counter(model.runtime for model in models if model.runtime)
    usual = runtimes.most_common(1)[0][0] if runtimes else None
    return tuple(_verdict(model, first_s, hours, usual) for model in models)


def _verdict(model: ModelTraffic, first_s: float, hours: int, usual: str | None) -> Verdict:
    active = len({int((time_s - first_s) // _HOUR_S) for time_s in model.times_s}) / hours
    per_day = 24 * len(model.times_s) / hours
    return Verdict(
        model=model.model,
        tolerates_cold=model.is_cold_tolerated,
        is_steady=per_day >= _MIN_CALLS_PER_DAY and active >= _MIN_ACTIVE_SHARE,
        needs_accelerator=model.is_accelerated,
        shares_runtime=None if model.runtime is None else model.runtime == usual,
        calls_per_day=per_day,
        active_share=active,
    )


def grouped(rows: Sequence[Mapping[str, str]]) -> tuple[ModelTraffic, ...]:
    """Rows of `model`, `at_s` and, if they say so, `cold_ok`, `accelerator` (yes or no) and `runtime`. Raises ValueError."""
    times: dict[str, list[float]] = {}
    said: dict[str, Mapping[str, str]] = {}
    for row in rows:
        times.setdefault(row["model"], []).append(float(row["at_s"]))
        said.setdefault(row["model"], row)
    return tuple(
        ModelTraffic(
            name,
            tuple(times[name]),
            is_cold_tolerated=_yes(said[name].get("cold_ok")),
            is_accelerated=_yes(said[name].get("accelerator")),
            runtime=said[name].get("runtime") or None,
        )
        for name in times
    )


def _yes(word: str | None) -> bool | None:
    if not word:
        return None
    if word not in {"yes", "no"}:
        raise ValueError(f"'{word[:40]}' must be yes or no")
    return word == "yes"
