"""Fair queueing: shares by weight, nobody starves, and every place is given back."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flatshare.core.ids import Tenant
from flatshare.policy.fair import Entry, FairQueue

A, B, C = Tenant("a"), Tenant("b"), Tenant("c")
COSTS = st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0.01, 5)), max_size=40)


def filled(*items: tuple[Tenant, float], weights: dict[Tenant, float] | None = None) -> FairQueue[Tenant]:
    queue: FairQueue[Tenant] = FairQueue()
    for tenant, cost in items:
        queue.push(tenant, tenant, cost=cost, weight=(weights or {}).get(tenant, 1.0))
    return queue


def drained(queue: FairQueue[Tenant]) -> list[Tenant]:
    order = []
    while (item := queue.pop()) is not None:
        order.append(item)
    return order


def test_one_tenant_is_served_in_its_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push(number, A, cost=1, weight=1)
    assert [queue.pop() for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_a_flood_waits_for_itself_and_a_rare_guest_for_one() -> None:
    queue = filled(*[(A, 1.0)] * 100)
    for _ in range(10):
        queue.pop()
    queue.push(B, B, cost=1, weight=1)
    assert B in {queue.pop(), queue.pop()}


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    queue = filled(*[(A, 1.0)] * 50)
    for _ in range(40):
        queue.pop()
    for _ in range(20):
        queue.push(B, B, cost=1, weight=1)
    first = Counter(drained(queue)[:10])
    assert abs(first[A] - first[B]) <= 1


def test_shares_follow_weights() -> None:
    queue = filled(*[(A, 1.0), (B, 1.0)] * 60, weights={A: 3.0})
    first = Counter(drained(queue)[:40])
    assert abs(first[A] - 30) <= 1


@given(COSTS)
def test_while_two_tenants_wait_neither_gets_ahead_by_more_than_two_pieces(pieces: list[tuple[Tenant, float]]) -> None:
    queue: FairQueue[tuple[Tenant, float]] = FairQueue()
    left = Counter(tenant for tenant, _ in pieces)
    for tenant, cost in pieces:
        queue.push((tenant, cost), tenant, cost=cost, weight=1)
    served = dict.fromkeys((A, B, C), 0.0)
    while (item := queue.pop()) is not None:
        served[item[0]] += item[1]
        left[item[0]] -= 1
        waiting = [served[tenant] for tenant in left if left[tenant]]
        if len(waiting) > 1:
            assert max(waiting) - min(waiting) <= 10 + 1e-9


@given(COSTS)
def test_everybody_comes_to_a_turn_once(pieces: list[tuple[Tenant, float]]) -> None:
    assert Counter(drained(filled(*pieces))) == Counter(tenant for tenant, _ in pieces)


def test_long_ones_wait_if_they_have_to() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("long", A, cost=9, weight=1, is_long=True)
    queue.push("short", A, cost=1, weight=1)
    assert queue.pop(with_long=False) == "short"
    assert queue.pop(with_long=False) is None
    assert len(queue) == 1
    assert queue.pop() == "long"


def test_long_ones_that_had_to_wait_are_no_backlog_before_those_who_came_later() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(20):
        queue.push(f"a{number}", A, cost=1, weight=1, is_long=True)
        queue.push("short", A, cost=1, weight=1)
    for _ in range(20):
        queue.pop(with_long=False)
    queue.push("b", B, cost=1, weight=1, is_long=True)
    assert "b" in {queue.pop(), queue.pop()}


def test_the_lines_of_short_and_long_ones_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(20):
        queue.push("long", A, cost=4, weight=1, is_long=True)
        queue.push("short", A, cost=1, weight=1)
    first = Counter(queue.pop() for _ in range(20))
    assert first["short"] == 16


def test_what_is_alike_goes_along_and_is_not_served_twice() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("x1", "y1", "x2", "x3"):
        queue.push(item, A, cost=1, weight=1)
    assert queue.pop() == "x1"
    along = queue.take_like(lambda item: item.startswith("x"), A)
    assert next(along) == "x2"
    assert [queue.pop() for _ in range(3)] == ["y1", "x3", None]


def test_a_newcomer_of_a_rare_tenant_has_little_before_it() -> None:
    queue = filled(*[(A, 1.0)] * 20)
    queue.pop()
    assert queue.ahead_of(A) == 19
    assert queue.ahead_of(B) <= 1


class QueueMachine(RuleBasedStateMachine):
    """Places are taken, called and given up in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[int, Entry[int]] = {}
        self.number = 0

    @rule(tenant=st.sampled_from([A, B, C]), cost=st.floats(0.1, 3), is_long=st.booleans())
    def come(self, tenant: Tenant, cost: float, is_long: bool) -> None:
        self.number += 1
        self.waiting[self.number] = self.queue.push(self.number, tenant, cost=cost, weight=1, is_long=is_long)

    @rule(with_long=st.booleans())
    def serve(self, with_long: bool) -> None:
        item = self.queue.pop(with_long=with_long)
        if item is not None:
            entry = self.waiting.pop(item)
            assert with_long or not entry.is_long
        else:
            assert all(entry.is_long for entry in self.waiting.values())
            assert not with_long or not self.waiting

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            self.queue.drop(self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting)))))

    @invariant()
    def places_and_costs_add_up(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert abs(self.queue.cost - sum(entry.cost for entry in self.waiting.values())) < 1e-6


QueueMachine.TestCase.settings = settings(deadline=None, max_examples=40)
TestQueueMachine = QueueMachine.TestCase
