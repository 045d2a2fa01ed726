"""Properties of admission: whoever follows the decision never goes beyond a limit."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.policy.admit import MemoryView, Need, Rules, Verdict, at_once, decide
from flatshare.policy.evict import Resident
from tests.policy.test_evict import SHARED, TENSORS, anonymous_of, crowds, holders_of, mapped_of

BASE = 500


@st.composite
def views(draw: st.DrawFn) -> MemoryView:
    """Books that are in order: what is there is within the limits, unless these have shrunk since."""
    residents = draw(crowds())
    return MemoryView(
        memory_limit=draw(st.integers(400, 14_000)),
        anonymous_limit=draw(st.integers(400, 12_000)),
        base_anonymous=BASE,
        anonymous=BASE + anonymous_of(residents),
        mapped=mapped_of(residents),
        residents=residents,
        holders=holders_of(residents),
    )


@st.composite
def needs(draw: st.DrawFn) -> Need:
    tensors = draw(st.sets(st.sampled_from(sorted(TENSORS))))
    shared = draw(st.sets(st.sampled_from(sorted(SHARED))))
    return Need(draw(st.integers(0, 300)), {s: SHARED[s] for s in shared}, {t: TENSORS[t] for t in tensors})


def newcomer(need: Need) -> Resident:
    return Resident(ModelKey("new"), 0, 0, need.own_bytes, need.tensors, need.shared)


def fits(view: MemoryView, residents: list[Resident]) -> bool:
    anonymous = BASE + anonymous_of(residents)
    return anonymous <= view.anonymous_limit and anonymous + mapped_of(residents) <= view.memory_limit


@given(views(), needs(), st.integers(0, 300), st.sampled_from([None, 0, 400]))
def test_what_is_admitted_at_once_is_what_would_be_decided(view: MemoryView, need: Need, scratch: int, ceiling: int | None) -> None:
    view = replace(view, rules=Rules(scratch_bytes=scratch, ceilings={} if ceiling is None else {need.tenant: ceiling}))
    admission, decided = at_once(replace(view, residents=()), need), decide(view, need)
    assert admission in {None, decided}
    if ceiling is None and decided.verdict is Verdict.ADMIT and not decided.is_scratch:
        assert admission == decided


@given(views(), needs())
def test_following_the_decision_never_exceeds_a_limit(view: MemoryView, need: Need) -> None:
    admission = decide(view, need)
    if admission.verdict in {Verdict.ADMIT, Verdict.EVICT_FIRST}:
        remaining = [resident for resident in view.residents if resident.key not in admission.victims]
        assert fits(view, [*remaining, newcomer(need)])


@given(views(), needs())
def test_a_model_never_fits_exactly_if_it_is_too_large_for_an_empty_instance(view: MemoryView, need: Need) -> None:
    assert (decide(view, need).verdict is Verdict.NEVER_FITS) == (not fits(view, [newcomer(need)]))


@given(views(), needs())
def test_one_waits_only_if_the_models_in_use_leave_no_room(view: MemoryView, need: Need) -> None:
    in_use = [resident for resident in view.residents if resident.leases > 0]
    is_blocked = fits(view, [newcomer(need)]) and not fits(view, [*in_use, newcomer(need)])
    assert (decide(view, need).verdict is Verdict.WAIT) == is_blocked


@given(views(), needs())
def test_nobody_is_evicted_for_a_model_that_fits_beside_the_others(view: MemoryView, need: Need) -> None:
    admission = decide(view, need)
    assert (admission.verdict is Verdict.ADMIT) == fits(view, [*view.residents, newcomer(need)])
    assert bool(admission.victims) == (admission.verdict is Verdict.EVICT_FIRST)


@given(views(), needs())
def test_every_decision_says_why(view: MemoryView, need: Need) -> None:
    assert decide(view, need).reason


def test_what_victim_and_newcomer_share_is_not_counted_as_freed() -> None:
    tensor, other = TensorDigest("t7"), TensorDigest("t0")
    resident = Resident(ModelKey("old"), 0, 0, 0, {tensor: 128})
    view = MemoryView(BASE + 128, 10_000, BASE, BASE, 128, (resident,), holders_of([resident]))
    assert decide(view, Need(0, {}, {tensor: 128})).verdict is Verdict.ADMIT
    assert decide(view, Need(0, {}, {tensor: 128, other: 1})).verdict is Verdict.NEVER_FITS


def test_the_last_user_of_a_session_takes_it_along() -> None:
    resident = Resident(ModelKey("old"), 0, 0, 10, {}, {"session a": 100})
    view = MemoryView(1_000_000, BASE + 110, BASE, BASE + 110, 0, (resident,), holders_of([resident]))
    assert decide(view, Need(10, {"session b": 100}, {})).verdict is Verdict.EVICT_FIRST


def test_a_victim_that_holds_only_what_the_newcomer_brings_back_is_not_enough() -> None:
    common, other, new = TensorDigest("t7"), TensorDigest("t6"), TensorDigest("t5")
    old = Resident(ModelKey("old"), 0, 0, 0, {common: 128}, {"session": 7})
    young = Resident(ModelKey("young"), 1, 0, 0, {other: 64})
    view = MemoryView(BASE + 7 + 192, 10_000, BASE, BASE + 7, 192, (old, young), holders_of([old, young]))
    assert decide(view, Need(0, {"session": 7}, {common: 128, new: 32})).victims == ("old", "young")
