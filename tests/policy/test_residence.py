"""What would not stay in memory is refused before it begins, with what would help."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import EndpointName, VariantName
from flatshare.core.spec import ModelSize
from flatshare.policy.residence import Crew, Machine, instance_bytes, refusal, summed

MB = 1_000_000
E, OTHER = EndpointName("e"), EndpointName("other")


def models(count: int, size_mb: int, common_mb: int = 0) -> tuple[ModelSize, ...]:
    common = {"trunk": common_mb * MB} if common_mb else {}
    return tuple(ModelSize(MB, {}, {f"own {index}": size_mb * MB} | common) for index in range(count))


def crew(sizes: tuple[ModelSize, ...], count: int = 1, endpoint: EndpointName = E) -> Crew:
    return Crew(endpoint, VariantName("AllTraffic"), count, summed(sizes))


def machine(memory_mb: int, most: int = 16) -> Machine:
    return Machine(memory_mb * MB, most)


def test_one_instance_needs_itself_its_models_and_what_they_share_once() -> None:
    assert instance_bytes(crew(models(10, 20, common_mb=45))) == (50 + 10 * 21 + 45) * MB


def test_private_memory_may_take_half_of_it() -> None:
    assert instance_bytes(crew((ModelSize(70 * MB, {}, {"w": MB}),))) == 2 * (50 + 70) * MB


def test_what_fits_is_accepted_and_one_model_more_is_not() -> None:
    assert refusal(E, (), (crew(models(10, 20)),), machine(260)) is None
    reason = refusal(E, (), (crew(models(11, 20)),), machine(260))
    assert reason is not None
    assert 'the 11 models of endpoint "e"' in reason
    assert "need 281 MB on its one instance, and available are 260 MB" in reason
    assert "--memory 281MB" in reason
    assert "overcommitted" in reason
    assert "InitialInstanceCount" not in reason, "alone on a machine, more instances share the same memory"


def test_beside_others_more_instances_of_it_get_more_of_the_machine() -> None:
    beside = (crew(models(1, 1), count=3, endpoint=OTHER),)
    reason = refusal(E, beside, (*beside, crew(models(100, 8))), machine(3000))
    assert reason is not None
    assert "InitialInstanceCount of " in reason
    count = int(reason.split("InitialInstanceCount of ")[1].split(",")[0])
    assert refusal(E, beside, (*beside, crew(models(100, 8), count)), machine(3000)) is None
    assert refusal(E, beside, (*beside, crew(models(100, 8), count - 1)), machine(3000)) is not None


def test_who_would_push_another_endpoint_out_is_refused() -> None:
    beside = crew(models(10, 20), endpoint=OTHER)
    reason = refusal(E, (beside,), (beside, crew(())), machine(400))
    assert reason is not None
    assert 'endpoint "other"' in reason


def test_an_endpoint_that_has_outgrown_the_machine_by_itself_forbids_nothing_to_others() -> None:
    beside = crew(models(100, 20), endpoint=OTHER)
    assert refusal(E, (beside,), (beside, crew(models(1, 1))), machine(400)) is None


def test_an_endpoint_that_has_outgrown_its_memory_may_do_what_leaves_it_lacking_no_more() -> None:
    beside = crew((), count=3, endpoint=OTHER)
    before = crew(models(100, 20), count=2)
    assert refusal(E, (beside, before), (beside, before), machine(2000)) is None
    assert refusal(E, (beside, before), (beside, crew(models(100, 20), count=4)), machine(2000)) is None, "it helps, and is not enough"
    assert refusal(E, (beside, before), (beside, crew(models(90, 20), count=2)), machine(2000)) is None, "fewer models"
    for worse in (crew(models(110, 20), count=2), crew(models(100, 20), count=1)):
        assert refusal(E, (beside, before), (beside, worse), machine(2000)) is not None


def test_alone_on_a_machine_more_instances_of_an_outgrown_endpoint_only_cost_more() -> None:
    assert refusal(E, (crew(models(100, 20)),), (crew(models(100, 20), count=2),), machine(2000)) is not None
    assert refusal(E, (crew(models(100, 20), count=2),), (crew(models(100, 20)),), machine(2000)) is None


def test_one_variant_s_lack_is_no_leave_for_another_s() -> None:
    lacks = crew(models(100, 20))
    beside = Crew(E, VariantName("other"), 1, summed(models(1, 1)))
    grown = replace(beside, holding=summed(models(90, 20)))
    assert refusal(E, (lacks, beside), (lacks, grown), machine(400)) is not None


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.just(7)), max_size=6))
def test_a_tensor_is_reckoned_once_with_its_model_or_as_one_that_several_have(tensors: list[dict[str, int]]) -> None:
    holding = summed(ModelSize(1, {}, listed) for listed in tensors)
    holders = Counter(digest for listed in tensors for digest in listed)
    alone = [sum(7 for digest in listed if holders[digest] == 1) for listed in tensors]
    assert holding.common_bytes == 7 * sum(count > 1 for count in holders.values())
    assert (holding.models, holding.weights.total_bytes, holding.weights.largest_bytes) == (len(tensors), sum(alone), max(alone, default=0))
    assert holding.weights.sum_of_squares == sum(size * size for size in alone)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 8))
def test_the_fullest_instance_holds_its_mean_and_its_largest_and_never_more_than_all(sizes_mb: list[int], count: int) -> None:
    sizes = tuple(ModelSize(0, {}, {f"{index}": size * MB}) for index, size in enumerate(sizes_mb))
    needed = instance_bytes(crew(sizes, count))
    base = 50 * MB
    assert max(sum(sizes_mb) * MB / count, max(sizes_mb) * MB) <= max(needed - base, needed / 2)
    assert needed <= max(2 * base, base + sum(sizes_mb) * MB)
