"""The four criteria of a shared endpoint."""

import pytest

from flatshare.policy.fit import ModelTraffic, grouped, judge

HOURLY = tuple(3600.0 * hour + 60 * part for hour in range(48) for part in range(3))
BURST = tuple(float(second) for second in range(500))


def test_a_model_that_is_called_often_and_steadily_fits_and_one_burst_does_not() -> None:
    steady, burst = judge([ModelTraffic("steady", HOURLY), ModelTraffic("burst", BURST)])
    assert (steady.is_steady, steady.fits, burst.is_steady, burst.fits) == (True, True, False, False)
    assert steady.active_share == pytest.approx(1.0)
    assert steady.calls_per_day == pytest.approx(72.0)


def test_a_model_that_is_called_seldom_does_not_fit() -> None:
    assert not judge([ModelTraffic("seldom", HOURLY[::30]), ModelTraffic("steady", HOURLY)])[0].fits


@pytest.mark.parametrize("needs", [{"is_cold_tolerated": False}, {"is_accelerated": False}, {"runtime": "another"}])
def test_one_criterion_that_fails_is_enough(needs: dict[str, object]) -> None:
    others = [ModelTraffic(str(index), HOURLY, runtime="usual") for index in range(2)]
    assert not judge([ModelTraffic("m", HOURLY, **needs), *others])[0].fits  # type: ignore[arg-type]  # by name, one at a time


def test_what_is_not_said_does_not_speak_against_a_model() -> None:
    [verdict] = judge([ModelTraffic("m", HOURLY)])
    assert (verdict.tolerates_cold, verdict.needs_accelerator, verdict.shares_runtime, verdict.fits) == (None, None, None, True)


def test_rows_are_grouped_by_model() -> None:
    rows = [
        {"model": "a", "at_s": "1", "cold_ok": "yes", "accelerator": "no", "runtime": "t5"},
        {"model": "b", "at_s": "2"},
        {"model": "a", "at_s": "3"},
    ]
    first, second = grouped(rows)
    assert (first.times_s, first.is_cold_tolerated, first.is_accelerated, first.runtime) == ((1.0, 3.0), True, False, "t5")
    assert (second.times_s, second.is_cold_tolerated) == ((2.0,), None)
    with pytest.raises(ValueError, match="must be yes or no"):
        grouped([{"model": "a", "at_s": "1", "cold_ok": "maybe"}])


def test_no_traffic_gives_no_verdict() -> None:
    assert judge([]) == ()
