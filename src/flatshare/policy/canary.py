"""Whether a version on trial goes on: errors, latency and disagreement, against the version that it is to replace."""

from dataclasses import dataclass

from flatshare.core.release import CanaryLimits

_NOTICEABLE_S = 0.002  # a difference that a busy machine makes by itself, and that nobody feels


@dataclass(frozen=True, slots=True)
class Tally:
    """What was seen of one version since the canary began."""

    calls: int = 0
    errors: int = 0
    warm_calls: int = 0
    """Answered, and without a cold start: what their time says is comparable."""
    warm_s: float = 0.0
    compared: int = 0
    differed: int = 0

    @property
    def error_share(self) -> float:
        return self.errors / self.calls if self.calls else 0.0

    @property
    def mean_s(self) -> float:
        return self.warm_s / self.warm_calls if self.warm_calls else 0.0


def reason_to_end(old: Tally, new: Tally, limits: CanaryLimits) -> str | None:
    """A sentence with the figures; None to go on. A few calls say nothing, but more failures than `min_calls` may have do at once."""
    allowed = limits.max_more_errors + old.error_share
    if new.errors > max(1.0, allowed * max(new.calls, limits.min_calls)):
        return f"{new.errors} of {new.calls} calls failed, {old.errors} of {old.calls} on the old version"
    slowest_s = max(limits.max_slowdown * old.mean_s, old.mean_s + _NOTICEABLE_S)
    if min(old.warm_calls, new.warm_calls) >= limits.min_calls and new.mean_s > slowest_s:
        return f"calls took {1e3 * new.mean_s:.1f} ms on average, {1e3 * old.mean_s:.1f} ms on the old version"
    if limits.max_disagreement is not None and new.compared >= limits.min_calls and new.differed > limits.max_disagreement * new.compared:
        return f"{new.differed} of {new.compared} answers differed from the old version's"
    return None
