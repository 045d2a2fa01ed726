"""How long will a run take, and when would it be over? From what runs of this model took so far."""

from dataclasses import dataclass

from flatshare.core.call import InferCall

_SMOOTHING = 0.2
_BYTES_PER_TOKEN = 4.5  # of English; what it errs, the measured pace makes good
_UNITS_PER_RUN = 32.0  # all weights come through the caches once: one text of 30 tokens takes 7 ms, sixteen take 62
_FIRST_S_PER_UNIT = 0.0003
_WAIT_MARGIN = 1.35  # a prediction that is right on the mean is late half of the time
_DRIFT_SMOOTHING, _MOST_DRIFT, _LEAST_TELLING_S = 0.02, 4.0, 0.02
_GUEST_RUN_S = 0.02  # four texts of 30 tokens: 437 a second on two cores, one by one 270, sixteen at once 506
_WAITS_PER_RUN = 16.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per unit of work, those counted that a run costs before its first."""

    s_per_unit: float = _FIRST_S_PER_UNIT


UNKNOWN = Pace()


def updated(pace: Pace, ran_s: float, units: float) -> Pace:
    return Pace(pace.s_per_unit + _SMOOTHING * (ran_s / (_UNITS_PER_RUN + units) - pace.s_per_unit))


def units_of(call: InferCall) -> float:
    """How much a call asks for, before anything is tokenised: about its tokens, or the elements of its tensors. Never nothing."""
    units = 0.0
    for tensor in call.inputs.values():
        if tensor.datatype == "BYTES":
            texts = tensor.data if tensor.data.ndim == 1 else tensor.data.flat
            units += sum(map(len, texts)) / _BYTES_PER_TOKEN + 2 * tensor.data.size
        else:
            units += tensor.data.size
    return max(1.0, units)


def seconds(pace: Pace, units: float) -> float:
    return pace.s_per_unit * (_UNITS_PER_RUN + units)


@dataclass(frozen=True, slots=True)
class Load:
    """What stands before a newcomer, in seconds of one worker's time."""

    workers: int
    ahead_s: float
    """Of those who wait and whose turn comes first."""
    running_s: float
    """What the runs under way still take."""
    drift: float = 1.0
    """How much longer than predicted the last ones waited (`drifted`)."""
    shared_run_s: float = 0.0
    """How long runs take at the moment: the newcomer's own may be shared, and its answer comes when all of it is done."""


def wait_s(load: Load) -> float:
    """Until a newcomer's turn, were predictions right."""
    return (load.ahead_s + load.running_s) / load.workers


def answer_s(load: Load, run_s: float) -> float:
    """Until a newcomer's answer."""
    return wait_s(load) * load.drift + max(run_s, load.shared_run_s)


def is_too_late(load: Load, run_s: float, left_s: float) -> bool:
    """Would a newcomer's answer come after its deadline, `left_s` from now?"""
    return answer_s(load, run_s) + wait_s(load) * load.drift * (_WAIT_MARGIN - 1) > left_s


def drifted(drift: float, predicted_s: float, waited_s: float) -> float:
    """The drift, with one more wait known. Short ones say little: a turn of the event loop is a large part of them."""
    if predicted_s < _LEAST_TELLING_S:
        return drift
    ratio = min(_MOST_DRIFT, max(1 / _MOST_DRIFT, waited_s / predicted_s))
    return max(1.0, drift + _DRIFT_SMOOTHING * (ratio - drift))


def must_wait_for_short(*, workers: int, long_running: int, since_short_s: float, keep_s: float) -> bool:
    """A long run may not take the last worker while short ones keep coming: they would wait for all of it."""
    return workers > 1 and long_running >= workers - 1 and since_short_s < keep_s


def may_give_way(*, own_s: float, away_s: float, left_s: float, due_in_s: float, guest_s: float) -> bool:
    """May a long run let a short one, of `guest_s` at most, go first between two of its parts?

    It has had `own_s` and given `away_s` away: guests get half of its worker, no more. And it must not come late for them.
    """
    return away_s <= own_s and left_s + guest_s <= due_in_s


def batch_room_s(*, longest_s: float, are_others_about: bool, waited_s: float) -> float:
    """How long a run of several requests may take: as long as it likes, unless another tenant may come and have to wait for all of it.

    Then it is short while queues are short, and grows with what its first rider has waited: when everybody waits for a second, runs that
    are three times as long serve a tenth more, and a guest hardly feels them.
    """
    if not are_others_about:
        return float("inf")
    return min(longest_s, max(_GUEST_RUN_S, waited_s / _WAITS_PER_RUN))
