"""An instance that accepts and never answers, as a stopped process does."""

import socket
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.settings import GatewaySettings
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.gateway.doors.sagemaker import SageMakerDoor
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics
from flatshare.wire.http import Request
from flatshare.wire.sagemaker import parse_invocation

pytestmark = pytest.mark.slow
NAME = EndpointName("hung")


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()  # the kernel accepts, nobody reads
        yield tmp_path / "s.sock"


async def test_a_hung_instance_is_unavailable_and_not_an_internal_error(silent: Path) -> None:
    routes = RouteTable("000000000000")
    instance = InstanceAddress(InstanceId("i-1"), str(silent))
    routes.replace(Routes({NAME: EndpointRoute(NAME, True, (VariantRoute(VariantName("v"), 1.0, "file:///m/", (instance,)),))}))
    metrics = GatewayMetrics()
    shadows = Shadows(routes, ShadowMetrics(metrics.registry), timeout_s=0.05)
    settings = GatewaySettings(hold_s=0.05)
    invoker = Invoker(settings, routes, metrics, shadows)
    door = SageMakerDoor(invoker, routes, settings, region="us-east-1", account="000000000000")
    headers = {b"x-amzn-sagemaker-target-model": b"a", b"content-type": b"application/json"}
    call = parse_invocation(Request("POST", "/endpoints/hung/invocations", headers, b'{"inputs": "hello"}'))
    assert call is not None
    reply = await door.invoke(call)
    assert reply.status == 503
    assert orjson.loads(reply.body)["ErrorCode"] == "ServiceUnavailable"
    assert "hangs" in orjson.loads(reply.body)["Message"]
    routes.close()
