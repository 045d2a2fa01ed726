"""What the operator decides: who is spared, who pays, and who is not let in."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey, Tenant, TensorDigest
from flatshare.policy import admit, evict
from flatshare.policy.admit import Admission, MemoryView, Need, Rules, Verdict
from flatshare.policy.evict import Manners, Order, Resident, Shortage
from tests.policy.test_evict import SHORTAGES, crowds, ends, holders_of

A, B = Tenant("a"), Tenant("b")
VALUE = Manners(order=Order.VALUE, now_s=100.0)


def model(name: str, size: int = 100, **more: Any) -> Resident:
    fields: dict[str, Any] = {"used_s": 0.0, "leases": 0, "anonymous_bytes": 0, "tensors": {TensorDigest(name): size}}
    return Resident(ModelKey(name), **(fields | more))


def need(size: int = 100, **more: Any) -> Need:
    return Need(0, {}, {TensorDigest("new"): size}, **more)


def view(*residents: Resident, limit: int = 400, rules: Rules | None = None) -> MemoryView:
    mapped = sum(size for resident in residents for size in resident.tensors.values())
    return MemoryView(limit, limit, 0, 0, mapped, residents, holders_of(residents), rules or Rules())


def victims(admission: Admission) -> list[str]:
    return list(admission.victims)


def first_to_go(residents: Sequence[Resident], manners: Manners) -> str:
    return evict.ranked(residents, holders_of(residents), manners)[0].key


class TestValue:
    def test_the_least_worth_per_byte_leaves_first(self) -> None:
        residents = [model("small", 10, worth=1.0), model("large", 1_000, worth=5.0)]
        assert first_to_go(residents, VALUE) == "large"

    def test_bytes_that_others_hold_too_are_no_gain(self) -> None:
        common = {TensorDigest("frozen"): 1_000}
        sharing = [model(f"s{i}", worth=1.0, tensors=common | {TensorDigest(f"head {i}"): 1}) for i in range(2)]
        assert first_to_go([*sharing, model("alone", 100, worth=1.0)], VALUE) == "alone"

    def test_a_large_newcomer_leaves_before_forty_small_ones_that_were_here_long(self) -> None:
        small = [model(f"s{i}", 10, worth=1.0) for i in range(40)]
        residents = [*small, model("large", 3_000, worth=5.0, used_s=99.0)]
        assert evict.choose(residents, holders_of(residents), Shortage(0, 400), VALUE) == ("large",)

    def test_who_is_worth_less_stays_too_if_a_larger_one_has_to_go_anyway(self) -> None:
        residents = [model("small", 10, worth=0.01), model("middle", 90, worth=1.0), model("large", 1_000, worth=50.0)]
        assert evict.choose(residents, holders_of(residents), Shortage(0, 10), VALUE) == ("small",)
        assert evict.choose(residents, holders_of(residents), Shortage(0, 100), VALUE) == ("small", "middle")
        assert evict.choose(residents, holders_of(residents), Shortage(0, 500), VALUE) == ("large",)

    @given(crowds(), st.lists(st.floats(0, 10), min_size=6, max_size=6), SHORTAGES)
    def test_by_value_each_victim_is_needed(self, crowd: tuple[Resident, ...], worths: list[float], shortage: Shortage) -> None:
        residents = tuple(replace(resident, worth=worth) for resident, worth in zip(crowd, worths, strict=False))
        victims = evict.choose(residents, holders_of(residents), shortage, VALUE)
        idle = {resident.key for resident in residents if not resident.leases}
        assert (victims is None) == (not ends(shortage, residents, idle))
        for spared in victims or ():
            assert not ends(shortage, residents, set(victims or ()) - {spared})
        assert victims is None or ends(shortage, residents, set(victims))


class TestPins:
    @given(crowds(), st.integers(0, 5))
    def test_a_pinned_model_is_never_chosen(self, residents: tuple[Resident, ...], pinned: int) -> None:
        some = tuple(replace(r, is_pinned=index <= pinned) for index, r in enumerate(residents))
        chosen = evict.choose(some, holders_of(some), Shortage(1_000, 3_000)) or ()
        assert not {r.key for r in some if r.is_pinned} & set(chosen)


class TestFloors:
    def test_a_tenant_keeps_what_it_was_promised(self) -> None:
        residents = [model("a1", tenant=A), model("a2", tenant=A, used_s=1.0), model("b1", tenant=B, used_s=2.0)]
        manners = Manners(floors={A: 150}, requester=B)
        assert evict.choose(residents, holders_of(residents), Shortage(0, 100), manners) == ("b1",)
        assert evict.choose(residents, holders_of(residents), Shortage(0, 200), manners) is None

    def test_a_floor_does_not_protect_a_tenant_from_itself(self) -> None:
        residents = [model("a1", tenant=A)]
        assert evict.choose(residents, holders_of(residents), Shortage(0, 100), Manners(floors={A: 150}, requester=A)) == ("a1",)

    @given(crowds(), st.integers(0, 3_000), st.integers(0, 8_000))
    def test_whoever_asks_the_floor_holds(self, residents: tuple[Resident, ...], floor: int, lack: int) -> None:
        some = tuple(replace(r, tenant=A if index % 2 else B) for index, r in enumerate(residents))
        before = admit.held_bytes(tuple(r for r in some if r.tenant == A))
        chosen = evict.choose(some, holders_of(some), Shortage(0, lack), Manners(floors={A: floor}, requester=B)) or ()
        after = admit.held_bytes(tuple(r for r in some if r.tenant == A and r.key not in chosen))
        assert after >= min(before, floor)


class TestCeilings:
    def test_a_tenant_at_its_ceiling_pays_itself_although_there_is_room(self) -> None:
        residents = [model("b1", tenant=B), model("a1", tenant=A, used_s=9.0)]
        rules = Rules(ceilings={A: 150})
        admission = admit.decide(view(*residents, limit=10_000, rules=rules), need(tenant=A))
        assert (admission.verdict, victims(admission)) == (Verdict.EVICT_FIRST, ["a1"])
        assert "ceiling" in admission.reason
        assert admit.decide(view(*residents, limit=10_000, rules=rules), need(tenant=B)).verdict is Verdict.ADMIT

    def test_it_waits_without_holding_up_others_while_its_own_are_in_use(self) -> None:
        admission = admit.decide(view(model("a1", tenant=A, leases=1), rules=Rules(ceilings={A: 150})), need(tenant=A))
        assert (admission.verdict, admission.is_own_limit) == (Verdict.WAIT, True)

    def test_what_is_above_the_ceiling_by_itself_never_fits(self) -> None:
        admission = admit.decide(view(rules=Rules(ceilings={A: 50})), need(tenant=A))
        assert admission.verdict is Verdict.NEVER_FITS
        assert "raise its ceiling" in admission.reason


class TestAllResident:
    def test_nothing_is_evicted_for_a_newcomer(self) -> None:
        rules = Rules(is_all_resident=True)
        assert admit.decide(view(model("m", 350), rules=rules), need(50)).verdict is Verdict.ADMIT
        admission = admit.decide(view(model("m", 350), rules=rules), need(100))
        assert admission.verdict is Verdict.NEVER_FITS
        assert "all-resident" in admission.reason

    def test_a_smaller_budget_still_evicts(self) -> None:
        admission = admit.decide(view(model("m", 350), limit=100, rules=Rules(is_all_resident=True)), Need(0, {}, {}))
        assert admission.verdict is Verdict.EVICT_FIRST


class TestScratch:
    RULES = Rules(VALUE, scratch_bytes=100)

    def test_a_model_worth_less_than_its_victims_is_served_beside_them(self) -> None:
        residents = [model(f"m{i}", worth=5.0) for i in range(3)]
        admission = admit.decide(view(*residents, rules=self.RULES), need(worth=1.0))
        assert (admission.verdict, admission.is_scratch) == (Verdict.ADMIT, True)

    def test_the_next_such_model_pushes_it_out(self) -> None:
        residents = [*(model(f"m{i}", worth=5.0) for i in range(3)), model("lodger", worth=9.0, is_scratch=True)]
        admission = admit.decide(view(*residents, rules=self.RULES), need(worth=1.0))
        assert (admission.verdict, victims(admission), admission.is_scratch) == (Verdict.EVICT_FIRST, ["lodger"], True)

    def test_a_model_worth_more_than_its_victims_takes_their_place(self) -> None:
        residents = [model(f"m{i}", worth=5.0 + i) for i in range(3)]
        admission = admit.decide(view(*residents, rules=self.RULES), need(worth=6.0))
        assert (admission.verdict, victims(admission), admission.is_scratch) == (Verdict.EVICT_FIRST, ["m0"], False)

    def test_if_the_slot_is_too_small_the_usual_victims_go(self) -> None:
        residents = [model(f"m{i}", worth=5.0) for i in range(3)]
        admission = admit.decide(view(*residents, rules=self.RULES), need(150, worth=1.0))
        assert (admission.verdict, len(admission.victims), admission.is_scratch) == (Verdict.EVICT_FIRST, 2, False)

    def test_while_all_others_are_in_use_the_slot_is_used_too(self) -> None:
        residents = [model(f"m{i}", leases=1) for i in range(3)]
        admission = admit.decide(view(*residents, rules=self.RULES), need(worth=99.0))
        assert (admission.verdict, admission.is_scratch) == (Verdict.ADMIT, True)
