"""The gateway's journey, with instances that are real servers and do as they are told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import orjson
import pytest

from flatshare.core.clock import SystemClock
from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.settings import GatewaySettings, SecuritySettings
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.gateway.app import FrontDoor
from flatshare.gateway.doors.openai import OpenAIDoor
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.doors.v2 import OpenInference
from flatshare.gateway.doors.v2_http import V2HttpDoor
from flatshare.gateway.explain import ModelExplainer
from flatshare.gateway.invoke import Invoker, request_ids
from flatshare.gateway.names import ModelNames
from flatshare.gateway.readiness import Readiness
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.gateway.status import FleetStatus
from flatshare.security.audit import AuditLog
from flatshare.security.entry import Entry
from flatshare.security.guard import Guard
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics
from flatshare.wire import container
from flatshare.wire.http import TOO_LARGE, Reply, Request

Instance = Callable[[Request], Awaitable[Reply]]
URI = "/endpoints/e/invocations"


@asynccontextmanager
async def gateway(
    tmp_path: Path,
    *instances: Instance,
    settings: GatewaySettings | None = None,
    security: SecuritySettings | None = None,
    routes: RouteTable | None = None,
) -> AsyncIterator[FrontDoor]:
    """A front door before one variant with these instances."""
    async with AsyncExitStack() as stack:
        addresses = []
        for index, handler in enumerate(instances):
            path = str(tmp_path / f"{index}.sock")
            server = HandlerServer(handler, Bounds(max_body_bytes=1 << 20), drain_s=0.1)
            await server.listen_on_socket(path)
            running = asyncio.create_task(server.run())
            stack.push_async_callback(asyncio.wait, {running})
            stack.callback(server.stop)
            addresses.append(InstanceAddress(InstanceId(f"i-{index}"), path))
        routes = routes or RouteTable("123456789012")
        routes.replace(routed_to(*addresses))
        metrics = GatewayMetrics()
        shadows = Shadows(routes, ShadowMetrics(metrics.registry), timeout_s=5.0)
        settings = settings or GatewaySettings()
        invoker = Invoker(settings, routes, metrics, shadows)

        async def control(_: Request) -> Reply:
            return Reply(200, b"control")

        clock = SystemClock()
        guard = Guard(security or SecuritySettings(), clock, region="r", account="123456789012", max_body_bytes=1 << 20)
        entry = Entry(guard, AuditLog(tmp_path / "audit"), metrics, clock)
        status, readiness = FleetStatus(routes, shadows), Readiness()
        readiness.start((), routes.routes, give_up_s=1.0)
        runtime = SageMakerDoor(invoker, routes, settings, region="r", account="123456789012")
        open_inference = OpenInference(invoker, ModelNames(routes, invoker), status, metrics, readiness, entry)
        open_ai, explainer = OpenAIDoor(invoker, routes, entry, settings), ModelExplainer(routes)
        yield FrontDoor(runtime, V2HttpDoor(open_inference, settings), open_ai, control, status, metrics, readiness, entry, explainer)
        entry.close()
        await shadows.close()
        routes.close()


def routed_to(*addresses: InstanceAddress) -> Routes:
    variant = VariantRoute(VariantName("blue"), 1.0, "s3://b/p", addresses)
    return Routes({EndpointName("e"): EndpointRoute(EndpointName("e"), is_multi_model=True, variants=(variant,))})


def invocation(**headers: str) -> Request:
    named = {b"x-amzn-sagemaker-target-model": b"acme/query", b"content-type": b"text/plain"}
    named |= {f"x-amzn-sagemaker-{k.replace('_', '-')}".encode(): v.encode() for k, v in headers.items()}
    return Request("POST", URI, named, b"hello")


async def good(request: Request) -> Reply:
    headers = [(container.MODEL_DIGEST, b"d1"), (b"x-secret", b"s")]
    return Reply(
        200, orjson.dumps({"path": request.path, "headers": {k.decode(): v.decode() for k, v in request.headers.items()}}), headers=headers
    )


def failing(status: int, name: str, sentence: str = "because") -> Instance:
    async def handler(_: Request) -> Reply:
        return container.error_reply(status, name, sentence)

    return handler


async def test_a_call_reaches_the_instance_with_the_models_address_and_nothing_else_of_the_callers(tmp_path: Path) -> None:
    async with gateway(tmp_path, good) as door:
        request = invocation(custom_attributes="c=1")
        request.headers[b"cookie"] = b"secret"
        reply = await door.handle(request)
        seen = orjson.loads(reply.body)["headers"]
        assert seen["x-flatshare-source-uri"] == "s3://b/p/acme/query"
        assert seen["x-flatshare-source-root"] == "s3://b/p"
        assert seen["x-amzn-sagemaker-target-model"] == "acme/query"
        assert seen["x-amzn-sagemaker-custom-attributes"] == "c=1"
        assert "cookie" not in seen
        answered = dict(reply.headers)
        assert answered[b"x-amzn-invoked-production-variant"] == b"blue"
        assert answered[container.MODEL_DIGEST] == b"d1"
        assert b"x-secret" not in answered


@pytest.mark.parametrize(
    ("instance", "status", "code", "original"),
    [
        (failing(400, "BadInput"), 424, "ModelError", 400),
        (failing(400, "BadPackage"), 424, "ModelError", 400),
        (failing(400, "UnsupportedModel"), 424, "ModelError", 400),
        (failing(507, "NeverFits"), 424, "ModelError", 507),
        (failing(500, "InternalFailure"), 424, "ModelError", 500),
        (failing(418, "NotOurs"), 424, "ModelError", 418),
        (failing(404, "UnknownTarget"), 400, "ValidationError", None),
        (failing(507, "OutOfMemory"), 503, "ServiceUnavailable", None),
        (failing(507, "DiskFull"), 503, "ServiceUnavailable", None),
        (failing(503, "Overloaded"), 503, "ServiceUnavailable", None),
        (failing(503, "StoreUnavailable"), 530, "InternalDependencyException", None),
    ],
)
async def test_each_failure_of_an_instance_has_the_contracts_code(
    tmp_path: Path, instance: Instance, status: int, code: str, original: int | None
) -> None:
    async with gateway(tmp_path, instance) as door:
        reply = await door.handle(invocation())
        fields = orjson.loads(reply.body)
        assert (reply.status, dict(reply.headers)[b"x-amzn-errortype"].decode()) == (status, code)
        assert "because" in fields["Message"]
        assert fields.get("OriginalStatusCode") == original


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            Request("POST", "/endpoints/other/invocations", {b"x-amzn-sagemaker-target-model": b"m"}),
            "Endpoint other of account 123456789012 not found",
        ),
        (Request("POST", URI, {}), "is missing a target model header"),
        (invocation(target_variant="green"), "no production variant 'green'"),
        (invocation(target_model="../other"), "must be a plain path"),
        (invocation(target_container_hostname="c"), "no TargetContainerHostname to choose"),
        (invocation(inference_component="c"), "leave InferenceComponentName out"),
        (invocation(enable_explanations="`true`"), "leave EnableExplanations out"),
        (invocation(custom_attributes="c" * 1025), "more than 1024 characters"),
        (invocation(inference_id="c" * 65), "more than 64 characters"),
        (Request("POST", "/endpoints/e/async-invocations", {}), "is not an asynchronous endpoint"),
        (Request("POST", "/endpoints/e/invocations-response-stream", {}), "missing a target model"),
        (Request("POST", URI, {b"x-amzn-sagemaker-target-model": b"m", TOO_LARGE: b"1"}), "6291456 bytes"),
    ],
)
async def test_a_call_that_cannot_be_right_is_a_validation_error(tmp_path: Path, request_: Request, says: str) -> None:
    async with gateway(tmp_path, good) as door:
        reply = await door.handle(request_)
        assert reply.status == 400
        assert dict(reply.headers)[b"x-amzn-errortype"] == b"ValidationError"
        assert says in orjson.loads(reply.body)["Message"]


async def test_sessions_and_custom_attributes_pass_through_both_ways(tmp_path: Path) -> None:
    said = [
        (b"x-amzn-sagemaker-custom-attributes", b"trace=1"),
        (b"x-amzn-sagemaker-new-session-id", b"s1; Expires=2030-01-01T00:00:00Z"),
        (b"x-amzn-sagemaker-closed-session-id", b"s0"),
    ]

    async def stateful(request: Request) -> Reply:
        assert request.header("x-amzn-sagemaker-session-id") == "NEW_SESSION"
        assert request.header("x-amzn-sagemaker-inference-id") == "i-7"
        return Reply(200, b"{}", headers=said)

    async with gateway(tmp_path, stateful) as door:
        reply = await door.handle(invocation(session_id="NEW_SESSION", inference_id="i-7"))
        assert reply.status == 200
        assert set(said) <= set(reply.headers)


async def test_when_an_instance_dies_the_call_goes_to_another(tmp_path: Path) -> None:
    async def dying(_: Request) -> Reply:
        raise ConnectionError("dies in mid-request")

    async with gateway(tmp_path, dying, good) as door:
        replies = [await door.handle(invocation(target_model=f"m{n}")) for n in range(10)]
        assert {reply.status for reply in replies} == {200}


async def test_what_an_instance_that_died_took_of_a_deadline_is_gone(tmp_path: Path) -> None:
    left_ms = list[float]()

    async def first_dies(request: Request) -> Reply:
        left_ms.append(float(request.header(container.DEADLINE_MS)))
        if len(left_ms) == 1:
            await asyncio.sleep(0.3)
            raise ConnectionError("dies in mid-request")
        return await good(request)

    async with gateway(tmp_path, first_dies, first_dies) as door:
        request = invocation()
        request.headers[container.DEADLINE_MS.encode()] = b"30000"
        assert (await door.handle(request)).status == 200
    assert left_ms[0] == 30_000
    assert 0 < left_ms[1] <= 29_700


async def test_when_no_instance_lives_the_caller_is_told_to_call_again(tmp_path: Path) -> None:
    async with gateway(tmp_path, settings=GatewaySettings(restart_wait_s=0.05)) as door:
        reply = await door.handle(invocation())
        assert reply.status == 503
        assert "call again" in orjson.loads(reply.body)["Message"]


async def test_a_call_waits_for_an_instance_that_is_started_again(tmp_path: Path) -> None:
    routes, patient = RouteTable("123456789012"), GatewaySettings(restart_wait_s=60.0)
    async with gateway(tmp_path, good, settings=patient, routes=routes) as door:
        [address] = routes.routes.endpoints[EndpointName("e")].variants[0].instances
        routes.replace(routed_to())
        waiting = asyncio.create_task(door.handle(invocation()))
        await asyncio.sleep(0)
        routes.replace(routed_to())  # news of something else
        await asyncio.sleep(0)
        assert not waiting.done()
        routes.replace(routed_to(address))
        assert (await waiting).status == 200


@pytest.mark.parametrize(("deadline_ms", "status"), [("20", 503), ("soon", 400)])
async def test_who_has_a_deadline_does_not_wait_longer_for_a_restart(tmp_path: Path, deadline_ms: str, status: int) -> None:
    async with gateway(tmp_path, settings=GatewaySettings(restart_wait_s=3_600.0)) as door:
        request = invocation()
        request.headers[container.DEADLINE_MS.encode()] = deadline_ms.encode()
        assert (await door.handle(request)).status == status


async def test_calls_that_wait_for_a_restart_leave_half_of_the_door_to_others(tmp_path: Path) -> None:
    async with gateway(tmp_path, settings=GatewaySettings(restart_wait_s=60.0, max_in_flight=2)) as door:
        first = asyncio.create_task(door.handle(invocation()))
        await asyncio.sleep(0)
        assert (await door.handle(invocation())).status == 503
        assert not first.done()
        first.cancel()


@pytest.mark.parametrize(("is_loaded", "status", "code"), [(False, 429, "ModelNotReadyException"), (True, 424, "ModelError")])
async def test_the_hold_time_tells_a_slow_load_from_a_slow_model(tmp_path: Path, *, is_loaded: bool, status: int, code: str) -> None:
    async def slow(request: Request) -> Reply:
        if request.method == "GET":
            return Reply(200 if is_loaded else 404, b"{}")
        await asyncio.Event().wait()
        raise AssertionError

    async with gateway(tmp_path, slow, settings=GatewaySettings(hold_s=0.05)) as door:
        reply = await door.handle(invocation())
        assert (reply.status, dict(reply.headers)[b"x-amzn-errortype"].decode()) == (status, code)


async def test_beyond_the_limit_of_calls_under_way_callers_are_turned_away_and_the_count_recovers(tmp_path: Path) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()

    async def waiting(request: Request) -> Reply:
        arrived.set()
        await gate.wait()
        return await good(request)

    async with gateway(tmp_path, waiting, settings=GatewaySettings(max_in_flight=1)) as door:
        first = asyncio.create_task(door.handle(invocation()))
        await arrived.wait()
        assert (await door.handle(invocation())).status == 503
        gate.set()
        assert (await first).status == 200
        assert (await door.handle(invocation())).status == 200


async def test_metrics_count_what_was_answered(tmp_path: Path) -> None:
    async with gateway(tmp_path, good) as door:
        for request in (invocation(), Request("POST", "/endpoints/unheard-of/invocations", {})):
            reply = await door.handle(request)
            assert reply.afterwards is not None
            reply.afterwards()
        text = (await door.handle(Request("GET", "/metrics", {}))).body.decode()
        assert 'flatshare_requests_total{endpoint="e",status="200"} 1.0' in text
        assert 'flatshare_requests_total{endpoint="unknown",status="400"} 1.0' in text, "a caller cannot make label values"


async def test_other_paths_are_control_health_or_unknown(tmp_path: Path) -> None:
    async with gateway(tmp_path, good) as door:
        assert (await door.handle(Request("POST", "/", {}))).body == b"control"
        assert (await door.handle(Request("GET", "/ping", {}))).status == 200
        assert (await door.handle(Request("GET", "/nothing", {}))).status == 404


def test_request_ids_are_distinct_uuids() -> None:
    ids = request_ids()
    drawn = {next(ids) for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(len(text) == 36 for text in drawn)
