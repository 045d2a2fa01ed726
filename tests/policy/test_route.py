"""Properties of rendezvous hashing with bounded load."""

from hypothesis import assume, given
from hypothesis import strategies as st

from flatshare.core.ids import InstanceId, ModelKey
from flatshare.policy.route import SPILL, InstanceLoad, choose, is_copied, pick_weighted

MODELS = [ModelKey(f"{i:032x}") for i in range(200)]
IDLE = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), unique=True, min_size=1, max_size=12).map(
    lambda names: [InstanceLoad(InstanceId(name), 0) for name in names]
)


@given(IDLE)
def test_a_model_stays_where_it_is_whatever_the_order_of_instances(instances: list[InstanceLoad]) -> None:
    shuffled = sorted(instances, key=lambda i: i.id[::-1])
    assert [choose(m, instances) for m in MODELS] == [choose(m, shuffled) for m in MODELS]


@given(IDLE, st.data())
def test_removing_an_instance_moves_only_the_models_that_it_held(instances: list[InstanceLoad], data: st.DataObject) -> None:
    assume(len(instances) > 1)
    gone = data.draw(st.sampled_from(instances))
    rest = [instance for instance in instances if instance is not gone]
    before = {model: choose(model, instances) for model in MODELS}
    after = {model: choose(model, rest) for model in MODELS}
    assert all(after[m] == before[m] for m in MODELS if before[m] != gone.id)
    assert all(after[m] != gone.id for m in MODELS)


def test_models_are_spread_evenly() -> None:
    instances = [InstanceLoad(InstanceId(f"i{n}"), 0) for n in range(4)]
    chosen = [choose(ModelKey(f"{i:032x}"), instances) for i in range(2_000)]
    assert all(400 < chosen.count(instance.id) < 600 for instance in instances)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_an_overloaded_instance_is_passed_over(loads: list[int]) -> None:
    instances = [InstanceLoad(InstanceId(f"i{n}"), load) for n, load in enumerate(loads)]
    mean = (sum(loads) + 1) / len(loads)
    for model in MODELS[:20]:
        picked = next(i for i in instances if i.id == choose(model, instances))
        assert picked.in_flight < max(4, SPILL * mean) or len(instances) == 1


def test_a_short_queue_does_not_push_a_model_off_its_instance() -> None:
    instances = [InstanceLoad(InstanceId("a"), 0), InstanceLoad(InstanceId("b"), 0)]
    for model in MODELS:
        home = choose(model, instances)
        busy = [InstanceLoad(i.id, 3 if i.id == home else 0) for i in instances]
        assert choose(model, busy) == home
        flooded = [InstanceLoad(i.id, 50 if i.id == home else 0) for i in instances]
        assert choose(model, flooded) != home


WEIGHTS = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=6)


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_a_variant_without_weight_gets_nothing_while_another_has_some(weights: list[float], point: float) -> None:
    index = pick_weighted(weights, point)
    assert weights[index] > 0 or (index == 0 and sum(weights) == 0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_variants_get_requests_in_proportion_to_their_weights(weights: list[int]) -> None:
    total = sum(weights)
    assume(total > 0)
    picks = [pick_weighted(weights, (step + 0.5) / total) for step in range(total)]
    assert [picks.count(index) for index in range(len(weights))] == weights


@given(st.floats(0.01, 100), st.floats(0, 100))
def test_a_shadow_gets_the_share_of_requests_that_the_ratio_of_weights_says(production: float, shadow: float) -> None:
    copied = sum(is_copied(production, shadow, n / 1000) for n in range(1000)) / 1000
    assert abs(copied - min(1.0, shadow / production)) <= 0.001 + 1e-9


def test_a_shadow_without_weight_gets_nothing_even_beside_production_without_weight() -> None:
    assert not is_copied(0.0, 0.0, 0.0)
    assert is_copied(0.0, 1.0, 0.5)
