"""Properties of the choice of victims, against a count from first principles."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.policy.evict import Holders, Resident, Shortage, choose

TENSORS: dict[TensorDigest, int] = {TensorDigest(f"t{i}"): 2**i for i in range(8)}  # powers of two: each subset has a sum of its own
SHARED: dict[str, int] = {f"s{i}": 2 ** (10 + i) for i in range(4)}
SHORTAGES = st.builds(Shortage, st.integers(-50, 9_000), st.integers(-50, 12_000))


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Resident, ...]:
    def resident(index: int) -> Resident:
        tensors = draw(st.sets(st.sampled_from(sorted(TENSORS))))
        shared = draw(st.sets(st.sampled_from(sorted(SHARED))))
        return Resident(
            ModelKey(f"m{index}"),
            used_s=draw(st.integers(0, 5)),
            leases=draw(st.sampled_from((0, 0, 0, 1, 2))),
            anonymous_bytes=draw(st.integers(0, 300)),
            tensors={tensor: TENSORS[tensor] for tensor in tensors},
            shared={name: SHARED[name] for name in shared},
        )

    return tuple(resident(index) for index in range(draw(st.integers(0, 6))))


def holders_of(residents: Sequence[Resident]) -> Holders:
    return Holders(Counter(t for r in residents for t in r.tensors), Counter(s for r in residents for s in r.shared))


def anonymous_of(residents: Sequence[Resident]) -> int:
    shared = {name for resident in residents for name in resident.shared}
    own: int = sum(resident.anonymous_bytes for resident in residents)
    return own + sum(SHARED[name] for name in shared)


def mapped_of(residents: Sequence[Resident]) -> int:
    return sum(TENSORS[tensor] for tensor in {tensor for resident in residents for tensor in resident.tensors})


def ends(shortage: Shortage, residents: Sequence[Resident], leaving: set[ModelKey]) -> bool:
    """Does it end the shortage if these leave? From the union of what remains, not by counting holders."""
    remaining = [resident for resident in residents if resident.key not in leaving]
    anonymous = anonymous_of(residents) - anonymous_of(remaining)
    mapped = mapped_of(residents) - mapped_of(remaining)
    return shortage.anonymous_bytes <= anonymous and shortage.total_bytes <= anonymous + mapped


@given(crowds(), SHORTAGES)
def test_victims_are_idle_and_the_least_recently_used(residents: tuple[Resident, ...], shortage: Shortage) -> None:
    victims = choose(residents, holders_of(residents), shortage) or ()
    by_key = {resident.key: resident for resident in residents}
    chosen = [by_key[key] for key in victims]
    assert all(resident.leases == 0 for resident in chosen)
    assert [r.used_s for r in chosen] == sorted(r.used_s for r in chosen)
    spared = [r for r in residents if r.leases == 0 and r.key not in victims]
    assert all(victim.used_s <= other.used_s for victim in chosen for other in spared)


@given(crowds(), SHORTAGES)
def test_victims_free_enough_and_no_shorter_row_of_them_does(residents: tuple[Resident, ...], shortage: Shortage) -> None:
    victims = choose(residents, holders_of(residents), shortage)
    if victims is not None:
        assert len(set(victims)) == len(victims)
        assert ends(shortage, residents, set(victims))
        assert not any(ends(shortage, residents, set(victims[:count])) for count in range(len(victims)))


@given(crowds(), SHORTAGES)
def test_there_is_no_choice_only_if_all_idle_models_together_do_not_suffice(residents: tuple[Resident, ...], shortage: Shortage) -> None:
    idle = {resident.key for resident in residents if resident.leases == 0}
    assert (choose(residents, holders_of(residents), shortage) is None) == (not ends(shortage, residents, idle))


def test_what_someone_on_the_way_in_holds_does_not_come_free() -> None:
    tensor = TensorDigest("t3")
    resident = Resident(ModelKey("m"), 0, 0, 0, {tensor: 8})
    assert choose([resident], Holders({tensor: 1}), Shortage(0, 8)) == ("m",)
    assert choose([resident], Holders({tensor: 2}), Shortage(0, 8)) is None


def test_private_memory_that_comes_free_counts_for_the_total_too() -> None:
    assert choose([Resident(ModelKey("m"), 0, 0, 100, {})], Holders({}), Shortage(0, 100)) == ("m",)
