"""Copies of requests to shadow variants, between instances that are real servers and do as they are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.exposition import generate_latest

from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.settings import GatewaySettings
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.gateway import shadow
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.gateway.status import FleetStatus
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics
from flatshare.wire import container
from flatshare.wire.http import Reply, Request
from flatshare.wire.sagemaker import parse_invocation

from .test_invoke import Instance, failing, invocation


@dataclass(slots=True)
class Gateway:
    door: SageMakerDoor
    shadows: Shadows
    metrics: GatewayMetrics
    status: FleetStatus

    async def answer(self, **headers: str) -> Reply:
        """The caller's answer; what is done afterwards has begun."""
        call = parse_invocation(invocation(**headers))
        assert call is not None
        reply = await self.door.invoke(call)
        assert reply.afterwards is not None
        reply.afterwards()
        return reply

    def outcomes(self) -> dict[str, int]:
        [record] = self.shadows.report()
        return {outcome: count for outcome, count in record["outcomes"].items() if count}


@asynccontextmanager
async def gateway(tmp_path: Path, production: Instance, copy: Instance | None, *, weight: float = 1.0) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:

        async def route(name: str, handler: Instance | None, share: float) -> VariantRoute:
            if handler is None:
                return VariantRoute(VariantName(name), share, f"s3://{name}/p", ())
            path = str(tmp_path / f"{name}.sock")
            server = HandlerServer(handler, Bounds(max_body_bytes=1 << 20), drain_s=0.1)
            await server.listen_on_socket(path)
            running = asyncio.create_task(server.run())
            stack.push_async_callback(asyncio.wait, {running})
            stack.callback(server.stop)
            return VariantRoute(VariantName(name), share, f"s3://{name}/p", (InstanceAddress(InstanceId(name), path),))

        variants = (await route("blue", production, 1.0),)
        routes = RouteTable("1")
        endpoint = EndpointRoute(EndpointName("e"), is_multi_model=True, variants=variants, shadows=(await route("s", copy, weight),))
        routes.replace(Routes({endpoint.name: endpoint}))
        metrics = GatewayMetrics()
        shadows = Shadows(routes, ShadowMetrics(metrics.registry), timeout_s=5.0)
        settings = GatewaySettings()
        door = SageMakerDoor(Invoker(settings, routes, metrics, shadows), routes, settings, region="r", account="1")
        yield Gateway(door, shadows, metrics, FleetStatus(routes, shadows))
        await shadows.close()
        routes.close()


def saying(*vector: float) -> Instance:
    async def handler(request: Request) -> Reply:
        name = request.header("x-amzn-sagemaker-target-model")
        return Reply(200, orjson.dumps({"embeddings": [vector], "model": {"name": name}}), headers=[(container.MODEL_DIGEST, b"d")])

    return handler


async def test_a_request_is_copied_compared_and_answered_by_production_alone(tmp_path: Path) -> None:
    seen: list[Request] = []

    async def shadowing(request: Request) -> Reply:
        seen.append(request)
        return await saying(2.0, 0.0)(request)

    async with gateway(tmp_path, saying(1.0, 0.0), shadowing) as house:
        reply = await house.answer(custom_attributes="c=1")
        await house.shadows.settle()
        assert orjson.loads(reply.body)["embeddings"] == [[1.0, 0.0]]
        assert dict(reply.headers)[b"x-amzn-invoked-production-variant"] == b"blue"
        [copied] = seen
        assert (copied.body, copied.header("x-flatshare-source-uri")) == (b"hello", "s3://s/p/acme/query")
        assert copied.header("x-amzn-sagemaker-custom-attributes") == "c=1"
        [record] = house.shadows.report()
        assert record["outcomes"] == {"agreed": 1, "differed": 0, "failed": 0, "dropped": 0}
        assert record["recent"]["cosine_mean"] == pytest.approx(1.0)
        assert record["recent"]["production_p50_ms"] > 0
        assert record["recent"]["shadow_p50_ms"] > 0


@pytest.mark.parametrize(
    ("production", "copy", "outcome"),
    [
        (saying(1.0, 0.0), saying(0.0, 1.0), "differed"),
        (saying(1.0, 0.0), failing(500, "InternalFailure"), "failed"),
        (saying(1.0, 0.0), None, "failed"),
        (failing(400, "BadPackage"), failing(400, "BadPackage"), "agreed"),
        (failing(400, "BadPackage"), saying(1.0), "differed"),
    ],
)
async def test_what_became_of_a_copy_is_counted(tmp_path: Path, production: Instance, copy: Instance | None, outcome: str) -> None:
    async with gateway(tmp_path, production, copy) as house:
        await house.answer()
        await house.shadows.settle()
        assert house.outcomes() == {outcome: 1}
        text = generate_latest(house.metrics.registry).decode()
        assert f'flatshare_shadow_copies_total{{endpoint="e",outcome="{outcome}",variant="s"}} 1.0' in text
        assert 'flatshare_shadow_seconds_count{endpoint="e",side="production",variant="s"} 1.0' in text


async def test_a_call_that_no_model_answered_is_not_copied(tmp_path: Path) -> None:
    async with gateway(tmp_path, failing(404, "UnknownTarget"), saying(1.0)) as house:
        assert (await house.answer()).status == 400
        await house.shadows.settle()
        assert house.outcomes() == {}


async def test_a_shadow_that_hangs_delays_nobody_and_holds_no_more_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_MAX_COPIES", 2)
    gate = asyncio.Event()

    async def hanging(request: Request) -> Reply:
        await gate.wait()
        return await saying(1.0)(request)

    async with gateway(tmp_path, saying(1.0), hanging) as house:
        assert [(await house.answer()).status for _ in range(5)] == [200] * 5
        assert house.outcomes() == {"dropped": 3}
        gate.set()
        await house.shadows.settle()
        assert house.outcomes() == {"dropped": 3, "agreed": 2}
        await house.answer()
        await house.shadows.settle()
        assert house.outcomes() == {"dropped": 3, "agreed": 3}


async def test_a_body_that_would_take_too_much_memory_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_MAX_BYTES", 10)
    async with gateway(tmp_path, saying(1.0), saying(1.0)) as house:
        await house.answer()
        assert house.outcomes() == {"dropped": 1}


async def test_without_weight_nothing_is_copied(tmp_path: Path) -> None:
    async with gateway(tmp_path, saying(1.0), saying(1.0), weight=0.0) as house:
        for _ in range(20):
            await house.answer()
        await house.shadows.settle()
        assert house.outcomes() == {}


async def test_a_target_variant_is_never_the_shadow(tmp_path: Path) -> None:
    async with gateway(tmp_path, saying(1.0), saying(1.0)) as house:
        reply = await house.answer(target_variant="s")
        assert (reply.status, b"no production variant 's'" in reply.body) == (400, True)


async def test_the_status_shows_how_shadows_compare(tmp_path: Path) -> None:
    async def both(request: Request) -> Reply:
        return Reply(200, b"{}") if request.path == "/flatshare/status" else await saying(1.0)(request)

    async with gateway(tmp_path, both, both) as house:
        report: dict[str, Any] = await house.status.report()
        assert [instance["instance"] for instance in report["instances"]] == ["blue", "s"]
        [record] = report["shadows"]
        assert (record["endpoint"], record["variant"], record["recent"]["requests"]) == ("e", "s", 0)
