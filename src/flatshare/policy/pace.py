"""How long will a run take, and when would it be over? From what runs of this model took so far."""

from dataclasses import dataclass

from flatshare.core.call import InferCall

_SMOOTHING = 0.2
_BYTES_PER_TOKEN = 4.5  # of English; what it errs, the measured pace makes good
_FIRST_S_PER_UNIT = 0.0005
_WAIT_MARGIN = 1.25  # a prediction that is right on the mean is late half of the time


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per unit of work."""

    s_per_unit: float = _FIRST_S_PER_UNIT


UNKNOWN = Pace()


def updated(pace: Pace, ran_s: float, units: float) -> Pace:
    return Pace(pace.s_per_unit + _SMOOTHING * (ran_s / max(1.0, units) - pace.s_per_unit))


def units_of(call: InferCall) -> float:
    """How much a call asks for, before anything is tokenised: about its tokens, or the elements of its tensors."""
    units = 0.0
    for tensor in call.inputs.values():
        if tensor.datatype == "BYTES":
            texts = tensor.data if tensor.data.ndim == 1 else tensor.data.flat
            units += sum(map(len, texts)) / _BYTES_PER_TOKEN + 2 * tensor.data.size
        else:
            units += tensor.data.size
    return units


def seconds(pace: Pace, units: float) -> float:
    return pace.s_per_unit * max(1.0, units)


@dataclass(frozen=True, slots=True)
class Load:
    """What stands before a newcomer, in seconds of one worker's time."""

    workers: int
    ahead_s: float
    """Of those who wait and whose turn comes first."""
    running_s: float
    """What the runs under way still take."""


def wait_s(load: Load) -> float:
    """Until a newcomer's turn."""
    return (load.ahead_s + load.running_s) / load.workers


def is_too_late(load: Load, run_s: float, left_s: float) -> bool:
    """Would a newcomer's answer come after its deadline, `left_s` from now?"""
    return wait_s(load) * _WAIT_MARGIN + run_s > left_s


def must_wait_for_short(*, workers: int, long_running: int, since_short_s: float, keep_s: float) -> bool:
    """A long run may not take the last worker while short ones keep coming: they would wait for all of it."""
    return workers > 1 and long_running >= workers - 1 and since_short_s < keep_s


def batch_room_s(*, longest_s: float, are_others_about: bool) -> float:
    """How long a run of several requests may take: as long as it likes, unless another tenant may come and have to wait for all of it."""
    return longest_s if are_others_about else float("inf")
