"""How many calls a second one key may make: a bucket that fills at that rate, and holds a second's worth for bursts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """Calls that may be made at once, as of a moment."""

    calls: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What one more call leaves behind."""

    bucket: Bucket
    is_allowed: bool


def take(bucket: Bucket | None, rate_rps: float, now_s: float) -> Taken:
    """A key that has not called before has a full bucket. A call that is not allowed costs nothing."""
    most = max(1.0, rate_rps)
    calls = most if bucket is None else min(most, bucket.calls + rate_rps * max(0.0, now_s - bucket.at_s))
    is_allowed = calls >= 1.0
    return Taken(Bucket(calls - 1.0 if is_allowed else calls, now_s), is_allowed)
