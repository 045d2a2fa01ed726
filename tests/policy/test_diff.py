from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.policy.diff import (
    Deployment,
    DeploymentId,
    DesiredEndpoint,
    Mark,
    Observed,
    ObservedInstance,
    Phase,
    Slot,
    Start,
    Status,
    Trouble,
    Variant,
    Verdict,
    judged,
    plan,
    trouble_after,
    wanted_counts,
)

E = EndpointName("e")
A = VariantName("a")


def deployment(key: str = "d1", *, count: int = 1, weight: float = 1.0) -> Deployment:
    return Deployment(DeploymentId(key), f"config-{key}", (Variant(A, count, weight, "s3://b/p/"),))


def slot(key: str = "d1") -> Slot:
    return Slot(E, DeploymentId(key), A)


def instances(count: int, key: str = "d1", phase: Phase = Phase.READY, start: int = 0) -> tuple[ObservedInstance, ...]:
    return tuple(ObservedInstance(InstanceId(f"{key}-{n}"), slot(key), phase, f"/{n}") for n in range(start, start + count))


CREATING = DesiredEndpoint(E, 1, Status.CREATING, target=deployment())
SERVING = DesiredEndpoint(E, 2, Status.IN_SERVICE, active=deployment())


def test_a_new_endpoint_gets_its_instances_and_is_not_routed_yet() -> None:
    decided = plan((CREATING,), Observed(()), now_s=0)
    assert decided.starts == (Start(slot(), 1),)
    assert decided.routes.endpoints == {}
    assert decided.marks == ()


def test_an_endpoint_whose_instances_answer_is_in_service_and_routed_at_once() -> None:
    decided = plan((CREATING,), Observed(instances(1)), now_s=0)
    assert decided.marks == (Mark(E, 1, Verdict.SETTLED),)
    assert decided.routes.endpoints[E].variants[0].instances[0].id == "d1-0"
    assert (decided.starts, decided.stops) == ((), ())


def test_a_start_that_failed_fails_the_new_endpoint() -> None:
    observed = Observed((), (Trouble(slot(), 1, 0.0, revision=1, start_failure="no"),))
    decided = plan((CREATING,), observed, now_s=0)
    assert decided.marks == (Mark(E, 1, Verdict.NEVER_STARTED, "no"),)
    assert decided.starts == ()


def test_a_failure_of_an_earlier_revision_is_not_judged_again() -> None:
    observed = Observed((), (Trouble(slot(), 1, 0.0, revision=0, start_failure="no"),))
    assert plan((CREATING,), observed, now_s=0).marks == ()


def test_an_update_starts_new_instances_while_the_old_ones_serve() -> None:
    updating = replace(SERVING, status=Status.UPDATING, target=deployment("d2"))
    decided = plan((updating,), Observed(instances(1)), now_s=0)
    assert decided.starts == (Start(slot("d2"), 2),)
    assert decided.stops == ()
    assert [i.id for i in decided.routes.endpoints[E].variants[0].instances] == ["d1-0"]


def test_an_update_cuts_over_when_every_new_instance_answers() -> None:
    updating = replace(SERVING, status=Status.UPDATING, target=deployment("d2", count=2))
    half = plan((updating,), Observed(instances(1) + instances(1, "d2")), now_s=0)
    assert half.marks == ()
    assert half.stops == ()
    done = plan((updating,), Observed(instances(1) + instances(2, "d2")), now_s=0)
    assert done.marks == (Mark(E, 2, Verdict.SETTLED),)
    assert done.stops == ("d1-0",)
    assert [i.id for i in done.routes.endpoints[E].variants[0].instances] == ["d2-0", "d2-1"]


def test_an_update_that_fails_goes_back_and_stops_what_it_had_started() -> None:
    updating = replace(SERVING, status=Status.UPDATING, target=deployment("d2", count=2))
    observed = Observed(instances(1) + instances(1, "d2"), (Trouble(slot("d2"), 1, 0.0, revision=2, start_failure="no"),))
    decided = plan((updating,), observed, now_s=0)
    assert decided.marks == (Mark(E, 2, Verdict.ROLLING_BACK, "no"),)
    assert decided.stops == ("d2-0",)
    assert [i.id for i in decided.routes.endpoints[E].variants[0].instances] == ["d1-0"]


def test_a_roll_back_is_over_when_the_last_instance_of_the_change_has_gone() -> None:
    rolling = replace(SERVING, status=Status.ROLLING_BACK)
    stopping = Observed(instances(1) + instances(1, "d2", phase=Phase.STOPPING))
    during = plan((rolling,), stopping, now_s=0)
    assert during.marks == ()
    assert [i.id for i in during.routes.endpoints[E].variants[0].instances] == ["d1-0"]
    assert plan((rolling,), Observed(instances(1)), now_s=0).marks == (Mark(E, 2, Verdict.ROLLED_BACK),)


def test_a_roll_back_ends_though_the_old_instance_has_died_meanwhile() -> None:
    rolling = replace(SERVING, status=Status.ROLLING_BACK)
    assert plan((rolling,), Observed(()), now_s=0).marks == (Mark(E, 2, Verdict.ROLLED_BACK),)


def test_a_shadow_has_instances_of_its_own_and_is_waited_for_and_routed_apart() -> None:
    shadow = Variant(VariantName("s"), 1, 0.5, "s3://b/s/")
    creating = replace(CREATING, target=replace(deployment(), shadows=(shadow,)))
    assert {start.slot.variant for start in plan((creating,), Observed(()), now_s=0).starts} == {"a", "s"}
    assert plan((creating,), Observed(instances(1)), now_s=0).marks == ()
    own = ObservedInstance(InstanceId("s-0"), Slot(E, DeploymentId("d1"), VariantName("s")), Phase.READY, "/s")
    route = plan((creating,), Observed((*instances(1), own)), now_s=0).routes.endpoints[E]
    assert [(v.name, [i.id for i in v.instances]) for v in route.variants] == [("a", ["d1-0"])]
    assert [(v.name, v.weight, v.prefix, [i.id for i in v.instances]) for v in route.shadows] == [("s", 0.5, "s3://b/s/", ["s-0"])]


def test_scaling_out_keeps_the_instances_and_scaling_in_stops_the_youngest() -> None:
    more = replace(SERVING, status=Status.UPDATING, target=deployment(count=3))
    assert len(plan((more,), Observed(instances(1)), now_s=0).starts) == 2
    fewer = replace(SERVING, status=Status.UPDATING, active=deployment(count=3), target=deployment(count=1))
    assert plan((fewer,), Observed(instances(3)), now_s=0).stops == ("d1-1", "d1-2")


def test_scaling_in_stops_what_is_not_ready_first() -> None:
    observed = Observed(instances(1, phase=Phase.STARTING) + instances(1, start=1))
    assert plan((SERVING,), observed, now_s=0).stops == ("d1-0",)


def test_a_change_of_weights_is_in_the_routes_when_it_has_settled() -> None:
    change = replace(SERVING, status=Status.UPDATING, target=deployment(weight=7.0))
    decided = plan((change,), Observed(instances(1)), now_s=0)
    assert decided.marks[0].verdict is Verdict.SETTLED
    assert decided.routes.endpoints[E].variants[0].weight == 7.0


def test_a_dead_instance_is_replaced_and_the_endpoint_stays_known() -> None:
    decided = plan((SERVING,), Observed(()), now_s=0)
    assert decided.starts == (Start(slot(), 2),)
    assert decided.routes.endpoints[E].variants[0].instances == ()


def test_crash_loops_wait_longer_each_time_up_to_a_minute() -> None:
    trouble: Trouble | None = None
    delays = []
    for _ in range(10):
        trouble = trouble_after(trouble, slot=slot(), revision=2, lived_s=1.0, now_s=100.0, start_failure=None)
        delays.append(trouble.retry_at_s - 100.0)
    assert delays == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert trouble is not None
    waiting = plan((SERVING,), Observed((), (trouble,)), now_s=130.0)
    assert waiting.starts == ()
    assert waiting.retry_at_s == 160.0
    assert plan((SERVING,), Observed((), (trouble,)), now_s=160.0).starts == (Start(slot(), 2),)


def test_an_instance_that_lived_long_ends_the_row_of_failures() -> None:
    before = Trouble(slot(), 9, 0.0, revision=2)
    assert trouble_after(before, slot=slot(), revision=2, lived_s=60.0, now_s=1.0, start_failure=None).failures == 1


def test_after_a_restart_an_endpoint_that_cannot_be_brought_back_is_out_of_service_and_tried_again() -> None:
    restoring = replace(SERVING, status=Status.UPDATING)
    observed = Observed((), (Trouble(slot(), 1, 0.0, revision=2, start_failure="no"),))
    decided = plan((restoring,), observed, now_s=0)
    assert decided.marks == (Mark(E, 2, Verdict.OUT_OF_SERVICE, "no"),)
    assert decided.starts == (Start(slot(), 2),)
    out = replace(SERVING, status=Status.OUT_OF_SERVICE)
    assert plan((out,), Observed(instances(1)), now_s=0).marks == (Mark(E, 2, Verdict.SETTLED),)


def test_an_update_of_an_endpoint_out_of_service_that_fails_leaves_it_out_of_service() -> None:
    updating = replace(SERVING, status=Status.UPDATING, target=deployment("d2"))
    observed = Observed((), (Trouble(slot("d2"), 1, 0.0, revision=2, start_failure="no"),))
    (mark,) = plan((updating,), observed, now_s=0).marks
    assert mark.verdict is Verdict.OUT_OF_SERVICE
    assert judged(updating, mark.verdict) == replace(SERVING, status=Status.OUT_OF_SERVICE)


def test_a_deleted_endpoint_leaves_the_routes_then_its_instances_then_itself() -> None:
    deleting = replace(SERVING, status=Status.DELETING)
    first = plan((deleting,), Observed(instances(1)), now_s=0)
    assert (first.stops, first.marks, first.routes.endpoints) == (("d1-0",), (), {})
    assert plan((deleting,), Observed(instances(1, phase=Phase.STOPPING)), now_s=0).marks == ()
    assert plan((deleting,), Observed(()), now_s=0).marks == (Mark(E, 2, Verdict.GONE),)


def test_instances_of_an_endpoint_that_nobody_knows_are_stopped() -> None:
    assert plan((), Observed(instances(2)), now_s=0).stops == ("d1-0", "d1-1")


counts = st.integers(1, 3)


@st.composite
def endpoints(draw: st.DrawFn) -> DesiredEndpoint:
    status = draw(st.sampled_from(Status))
    active = None if status is Status.CREATING else deployment("d1", count=draw(counts))
    target = deployment(draw(st.sampled_from(["d1", "d2"])), count=draw(counts))
    has_target = active is None or (status is Status.UPDATING and draw(st.booleans()))
    return DesiredEndpoint(E, draw(st.integers(1, 2)), status, active, target if has_target else None)


fleets = st.lists(st.tuples(st.sampled_from(["d1", "d2", "d3"]), st.sampled_from(Phase)), max_size=6).map(
    lambda drawn: tuple(ObservedInstance(InstanceId(str(n)), slot(key), phase) for n, (key, phase) in enumerate(drawn))
)
troubles = st.lists(
    st.builds(
        Trouble,
        st.sampled_from([slot("d1"), slot("d2")]),
        st.integers(1, 5),
        st.floats(0, 100),
        st.integers(1, 2),
        st.sampled_from([None, "no"]),
    ),
    unique_by=lambda trouble: trouble.slot,
).map(tuple)


@given(endpoints(), fleets, troubles)
def test_carrying_out_a_plan_leads_to_a_moment_that_needs_nothing_more(
    endpoint: DesiredEndpoint, fleet: tuple[ObservedInstance, ...], trouble: tuple[Trouble, ...]
) -> None:
    desired: tuple[DesiredEndpoint, ...] = (endpoint,)
    observed = Observed(fleet, trouble)
    for _ in range(5):
        decided = plan(desired, observed, now_s=1e6)
        verdicts = {mark.endpoint: mark.verdict for mark in decided.marks}
        desired = tuple(
            replace(after, revision=after.revision + 1)
            for e in desired
            if (after := judged(e, verdicts[e.name]) if e.name in verdicts else e)
        )
        running = [i for i in observed.instances if i.id not in decided.stops and i.phase is not Phase.STOPPING]
        started = [ObservedInstance(InstanceId(f"n{n}{s}"), s.slot, Phase.READY) for n, s in enumerate(decided.starts)]
        observed = Observed((*(replace(i, phase=Phase.READY) for i in running), *started))
    final = plan(desired, observed, now_s=1e6)
    assert (final.starts, final.stops, final.marks) == ((), (), ())
    have: dict[Slot, int] = {}
    for instance in observed.instances:
        have[instance.slot] = have.get(instance.slot, 0) + 1
    assert have == {s: count for e in desired for s, count in wanted_counts(e).items()}


@given(endpoints(), fleets, troubles)
def test_no_route_leads_to_an_instance_that_is_not_ready_or_is_to_stop(
    endpoint: DesiredEndpoint, fleet: tuple[ObservedInstance, ...], trouble: tuple[Trouble, ...]
) -> None:
    decided = plan((endpoint,), Observed(fleet, trouble), now_s=0.0)
    routed = {i.id for route in decided.routes.endpoints.values() for variant in route.variants for i in variant.instances}
    assert routed <= {i.id for i in fleet if i.phase is Phase.READY}
    assert not routed & set(decided.stops)
