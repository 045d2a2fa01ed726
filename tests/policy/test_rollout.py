from hypothesis import given
from hypothesis import strategies as st

from flatshare.policy.rollout import AT_ONCE, NOT_BEGUN, Decision, Move, Progress, Rollout, Size, decide, new_count, old_count, share

HALF, TENTH = Size(50, is_percent=True), Size(10, is_percent=True)
sizes = st.builds(Size, st.integers(5, 50), is_percent=st.just(True)) | st.builds(Size, st.integers(1, 4), is_percent=st.just(False))
rollouts = st.one_of(
    st.builds(Rollout, st.none(), wait_s=st.sampled_from([0.0, 60.0]), termination_wait_s=st.sampled_from([0.0, 60.0])),
    st.builds(Rollout, sizes, is_canary=st.booleans(), wait_s=st.sampled_from([0.0, 60.0])),
    st.builds(Rollout, sizes, is_rolling=st.just(True), wait_s=st.sampled_from([0.0, 60.0])),
)


def test_shares_are_those_of_the_type() -> None:
    assert AT_ONCE.shares(4) == (1.0,)
    assert Rollout(TENTH, is_canary=True).shares(4) == (0.1, 1.0)
    assert len(Rollout(TENTH).shares(4)) == 10
    assert Rollout(Size(30, is_percent=True)).shares(4) == (0.3, 0.6, 0.8999999999999999, 1.0)
    assert Rollout(Size(1, is_percent=False), is_canary=True).shares(4) == (0.25, 1.0)
    assert Rollout(Size(1, is_percent=False), is_canary=True).shares(1) == (1.0,)


def test_without_a_policy_the_old_fleet_goes_as_soon_as_the_new_one_is_ready() -> None:
    assert decide(AT_ONCE, NOT_BEGUN, 2, is_ready=False, now_s=5) == Decision(Move.WAIT)
    assert decide(AT_ONCE, NOT_BEGUN, 2, is_ready=True, now_s=5) == Decision(Move.SETTLE)


def test_a_canary_waits_twice_and_the_old_fleet_stays_for_the_termination_wait() -> None:
    rollout = Rollout(TENTH, is_canary=True, wait_s=60, termination_wait_s=30)
    assert decide(rollout, NOT_BEGUN, 2, is_ready=True, now_s=5).move is Move.SHIFT
    first = Progress(1, since_s=5)
    assert decide(rollout, first, 2, is_ready=True, now_s=64) == Decision(Move.WAIT, 65)
    assert decide(rollout, first, 2, is_ready=True, now_s=65).move is Move.SHIFT
    assert decide(rollout, first, 2, is_ready=False, now_s=70) == Decision(Move.WAIT)
    last = Progress(2, since_s=65)
    assert decide(rollout, last, 2, is_ready=True, now_s=130) == Decision(Move.WAIT, 155)
    assert decide(rollout, last, 2, is_ready=True, now_s=155).move is Move.SETTLE


def test_what_takes_longer_than_it_may_is_over_whatever_it_waits_for() -> None:
    rollout = Rollout(TENTH, wait_s=60, timeout_s=600)
    began = Progress(began_s=1000)
    assert decide(rollout, began, 2, is_ready=False, now_s=1001) == Decision(Move.WAIT, 1600)
    assert decide(rollout, began, 2, is_ready=True, now_s=1600).move is Move.TIME_OUT


@given(rollouts, st.integers(1, 12))
def test_every_rollout_ends_and_the_share_only_grows(rollout: Rollout, count: int) -> None:
    progress, now_s, shares = NOT_BEGUN, 0.0, [0.0]
    while (decision := decide(rollout, progress, count, is_ready=True, now_s=now_s)).move is not Move.SETTLE:
        if decision.move is Move.WAIT:
            assert decision.due_s is not None
            assert decision.due_s > now_s
            now_s = decision.due_s
        else:
            progress = Progress(progress.step + 1, now_s)
            shares.append(share(rollout, progress, count))
        assert progress.step <= 25
    assert shares == sorted(shares)
    assert shares[-1] == 1.0 or shares == [0.0], "all of it has moved, or the old fleet stops in the same moment"


@given(rollouts, st.integers(1, 12), st.integers(1, 12))
def test_the_fleets_together_never_fall_below_what_serves_all_and_grow_no_further_than_both(rollout: Rollout, old: int, new: int) -> None:
    for step in range(len(rollout.shares(new)) + 1):
        progress = Progress(step)
        grown, kept = new_count(rollout, progress, new, new), old_count(rollout, progress, new, old)
        assert 0 < grown <= new
        assert 0 <= kept <= old
        assert grown / new + kept / old >= 1.0 - 1e-9
        assert grown / new >= share(rollout, progress, new) - 1e-9, "who gets requests is there"
    assert new_count(rollout, Progress(len(rollout.shares(new))), new, new) == new


def test_a_rolling_update_replaces_batch_by_batch() -> None:
    rollout = Rollout(HALF, is_rolling=True)
    counts = [(new_count(rollout, Progress(step), 4, 4), old_count(rollout, Progress(step), 4, 4)) for step in range(3)]
    assert counts == [(2, 4), (4, 4), (4, 2)]
