"""When to call again: own loop, because boto3's standard mode does not retry 429, and its legacy mode ignores Retry-After.

An inference changes nothing, so it may be run twice. A time-out is not tried again: the caller has waited 70 s already.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectionError,  # noqa: A004  # botocore's name
    HTTPClientError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from flatshare.core import errors
from flatshare.core.errors import FlatshareError

T = TypeVar("T")
RETRIED = frozenset({429, 502, 503, 504})
_BY_STATUS: dict[int, type[FlatshareError]] = {
    400: errors.BadInput,
    429: errors.ModelNotReady,
    503: errors.Overloaded,
    530: errors.StoreUnavailable,
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on."""

    attempts: int = 5
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    deadline_s: float = 180.0
    """No wait begins that would end later than this after the first attempt."""
    statuses: frozenset[int] = RETRIED


@dataclass(frozen=True, slots=True)
class Setback:
    """One failed attempt: what a decision to wait needs to know."""

    attempt: int
    elapsed_s: float
    can_retry: bool
    asked_wait_s: float | None = None
    """What Retry-After said."""


def next_wait_s(patience: Patience, setback: Setback, dice: float) -> float | None:
    """Seconds to wait before the next attempt, by a `dice` in [0, 1); None to give up.

    Full jitter: a thousand callers who were refused together do not come back together.
    """
    if not setback.can_retry or setback.attempt >= patience.attempts:
        return None
    backoff_s = dice * min(patience.max_wait_s, patience.first_wait_s * 2**setback.attempt)
    wait_s = backoff_s if setback.asked_wait_s is None else setback.asked_wait_s + dice * patience.first_wait_s
    return wait_s if setback.elapsed_s + wait_s <= patience.deadline_s else None


def call_patiently(call: Callable[[], T], patience: Patience, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """The call's answer, after as many attempts as it takes. Raises an error of `core/errors.py`, caused by boto3's."""
    attempt, started_s = 0, time.monotonic()
    while True:
        attempt += 1
        try:
            return call()
        except (ClientError, ConnectionError, HTTPClientError) as error:
            setback = _setback(error, patience.statuses, attempt, time.monotonic() - started_s)
            wait_s = next_wait_s(patience, setback, random.random())  # noqa: S311  # jitter, not a secret
            if wait_s is None:
                raise as_flatshare(error) from error
            sleep(wait_s)


def _setback(error: Exception, statuses: frozenset[int], attempt: int, elapsed_s: float) -> Setback:
    if isinstance(error, ClientError):
        answer = error.response["ResponseMetadata"]
        return Setback(attempt, elapsed_s, answer["HTTPStatusCode"] in statuses, _asked_wait_s(answer.get("HTTPHeaders", {})))
    return Setback(attempt, elapsed_s, isinstance(error, ConnectionError | ConnectionClosedError | ResponseStreamingError))


def _asked_wait_s(headers: dict[str, str]) -> float | None:
    """Retry-After in seconds; its other form, a date, is left alone: our servers do not send it, and clocks differ."""
    said = headers.get("retry-after", "")
    return float(said) if said.isdigit() else None


def as_flatshare(error: Exception) -> FlatshareError:
    """boto3's error as one of ours, with the server's own words."""
    if not isinstance(error, ClientError):
        if isinstance(error, ReadTimeoutError):
            return errors.InstanceHung(f"no answer in time: {error}")
        return errors.InstanceGone(f"the server cannot be reached: {error}")
    response: dict[str, Any] = dict(error.response)
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    message = str(response.get("OriginalMessage") or response["Error"].get("Message") or error)
    if response["Error"].get("Code") == "ModelError":
        return errors.BadInput(message) if int(response.get("OriginalStatusCode", 500)) < 500 else errors.CallFailed(message)
    if status == 400 and message.startswith("Endpoint "):
        return errors.UnknownEndpoint(message)
    return _BY_STATUS.get(status, errors.CallFailed)(message)
