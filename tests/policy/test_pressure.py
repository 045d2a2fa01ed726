"""The budget gives way to pressure from outside at once, and comes back slowly."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.sizes import MIB
from flatshare.policy import pressure
from flatshare.policy.pressure import Allowance, Signs

GIB = 1024 * MIB
BYTES = st.integers(0, 64 * GIB)


def allowed(available: int, *, private: int = 0, before: int = 2 * GIB, elapsed_s: float = 1.0) -> Allowance:
    return pressure.allowance(Signs(8 * GIB, available), budget=2 * GIB, private=private, before=before, elapsed_s=elapsed_s)


@given(st.integers(GIB, 64 * GIB), BYTES, BYTES, BYTES, BYTES, st.floats(0, 100), st.floats(0, 100), st.floats(0, 1e6))
def test_it_is_never_negative_and_never_beyond_the_budget(
    total: int, available: int, budget: int, private: int, before: int, elapsed_s: float, stalled: float, refaults: float
) -> None:
    signs = Signs(total, available, stalled, refaults)
    found = pressure.allowance(signs, budget=budget, private=private, before=before, elapsed_s=elapsed_s)
    assert 0 <= found.bytes <= budget
    assert found.bytes <= max(0, private + available - pressure.reserve_of(total))
    assert found.reason or found.bytes == budget


def test_with_enough_beside_us_the_whole_budget_may_be_used() -> None:
    assert allowed(6 * GIB) == Allowance(2 * GIB, is_tight=False, reason="")


def test_a_hog_takes_it_down_at_once() -> None:
    found = allowed(700 * MIB, private=100 * MIB)
    assert found.bytes == 800 * MIB - pressure.reserve_of(8 * GIB)
    assert "available beside us" in found.reason


def test_it_comes_back_a_tenth_a_second() -> None:
    assert allowed(6 * GIB, before=GIB).bytes == GIB + 2 * GIB // 10
    assert allowed(6 * GIB, before=GIB, elapsed_s=60).bytes == 2 * GIB


def test_in_the_last_half_of_the_reserve_nothing_is_loaded() -> None:
    assert allowed(300 * MIB).is_tight is False
    assert allowed(100 * MIB).is_tight is True


def test_stalls_and_refaults_shrink_it_although_memory_seems_available() -> None:
    for signs in (Signs(8 * GIB, 6 * GIB, stalled_percent=30.0), Signs(8 * GIB, 6 * GIB, refaults_per_s=50_000.0)):
        found = pressure.allowance(signs, budget=2 * GIB, private=0, before=2 * GIB, elapsed_s=1.0)
        assert found.bytes == 2 * GIB - 2 * GIB // 10
        assert found.reason


def test_stalls_with_memory_to_spare_are_the_disk_s_and_take_nothing() -> None:
    signs = Signs(8 * GIB, 6 * GIB, stalled_percent=90.0, refaults_per_s=50_000.0, free=GIB)
    assert pressure.allowance(signs, budget=2 * GIB, private=0, before=2 * GIB, elapsed_s=1.0) == Allowance(
        2 * GIB, is_tight=False, reason=""
    )


def test_stalls_alone_take_no_more_than_half() -> None:
    signs, before = Signs(8 * GIB, 6 * GIB, stalled_percent=90.0), 2 * GIB
    for _ in range(100):
        before = pressure.allowance(signs, budget=2 * GIB, private=0, before=before, elapsed_s=1.0).bytes
    assert before == GIB
