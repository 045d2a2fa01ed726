"""Where a model of a code version runs, when it moves, and when it is left alone for a while."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import Tenant
from flatshare.policy.workers import Action, Choice, Waiting, WorkerLoad, choose, home, quarantine, turns

BUSY = WorkerLoad("busy", models=4, is_busy=True, busy_s=4.0)
IDLE = WorkerLoad("idle", models=2, is_busy=False, busy_s=2.0)
MODEL = Waiting(busy_s=1.0, since_move_s=60.0, is_behind_itself=False)
seconds = st.floats(0, 10)


def test_a_model_moves_to_an_idle_worker_if_the_work_is_more_even_then() -> None:
    assert choose(BUSY, [IDLE], MODEL, most=2) == Choice(Action.MOVE, "idle")


def test_even_work_stays_where_it_is_until_whoever_runs_has_run_long() -> None:
    even = WorkerLoad("idle", models=4, is_busy=False, busy_s=4.0)
    choice = choose(BUSY, [even], MODEL, most=2)
    assert (choice.action, choice.worker) == (Action.WAIT, None)
    assert choice.again_s is not None
    later = WorkerLoad("busy", models=4, is_busy=True, busy_s=BUSY.busy_s + choice.again_s + 1e-6)
    assert choose(later, [even], MODEL, most=2).action is Action.MOVE


def test_a_model_that_has_just_moved_waits_for_its_next_move() -> None:
    choice = choose(BUSY, [IDLE], Waiting(1.0, since_move_s=2.0, is_behind_itself=False), most=2)
    assert choice == Choice(Action.WAIT, again_s=3.0)


def test_nobody_moves_away_from_itself_or_out_of_an_idle_worker_or_leaves_one_empty() -> None:
    alone = WorkerLoad("busy", models=1, is_busy=True, busy_s=4.0)
    assert choose(BUSY, [IDLE], Waiting(1.0, 60.0, is_behind_itself=True), most=2).action is Action.WAIT
    assert choose(IDLE, [IDLE], MODEL, most=2).action is Action.WAIT
    assert choose(alone, [IDLE], MODEL, most=2).action is Action.WAIT


def test_another_worker_is_started_if_all_have_work_and_there_may_be_more() -> None:
    assert choose(BUSY, [], MODEL, most=2) == Choice(Action.START)
    assert choose(BUSY, [BUSY], MODEL, most=2) == Choice(Action.WAIT)


@given(own=seconds, other=seconds, model=seconds)
def test_no_move_is_followed_by_its_opposite(own: float, other: float, model: float) -> None:
    here = WorkerLoad("a", 4, is_busy=True, busy_s=own + model)
    there = WorkerLoad("b", 4, is_busy=False, busy_s=other)
    if choose(here, [there], Waiting(model, 60.0, is_behind_itself=False), most=2).action is Action.MOVE:
        left = WorkerLoad("a", 3, is_busy=False, busy_s=own)
        entered = WorkerLoad("b", 5, is_busy=True, busy_s=other + model)
        assert choose(entered, [left], Waiting(model, 60.0, is_behind_itself=False), most=2).action is Action.WAIT


def test_the_tenant_that_was_served_least_has_the_first_turn_and_equals_go_by_when_they_came() -> None:
    a, b, c = Tenant("a"), Tenant("b"), Tenant("c")
    assert turns([a, a, b, c], {a: 3.0, b: 1.0}) == [3, 2, 0, 1]
    assert turns([b, a], {}) == [0, 1]


def test_a_tenant_of_twice_the_weight_may_have_twice_as_much() -> None:
    a, b = Tenant("a"), Tenant("b")
    weights = {a: 2.0, b: 1.0}
    assert turns([b, a], {a: 1.9, b: 1.0}, weights.__getitem__) == [1, 0]
    assert turns([a, b], {a: 2.1, b: 1.0}, weights.__getitem__) == [1, 0]


def test_a_new_model_lives_where_there_are_fewest() -> None:
    assert home([BUSY, IDLE]) == "idle"
    assert home([]) is None


def test_three_failures_within_ten_minutes_shut_a_model_out_and_each_further_one_for_longer() -> None:
    assert quarantine([0.0, 1.0], 1.0, None) is None
    assert quarantine([0.0, 1.0, 700.0], 700.0, None) is None
    first = quarantine([0.0, 1.0, 2.0], 2.0, None)
    assert first is not None
    assert first.until_s == 32.0
    second = quarantine([100.0], 100.0, first)
    assert second is not None
    assert second.until_s == 160.0
