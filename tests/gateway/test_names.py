"""Names of models that the Open Inference Protocol has no endpoints for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flatshare.core.access import Grant
from flatshare.core.clock import SystemClock
from flatshare.core.errors import AccessDenied, AmbiguousModel, InstanceGone, MissingCredentials, UnknownEndpoint, UnknownTarget
from flatshare.core.ids import EndpointName, InstanceId, VariantName
from flatshare.core.settings import GatewaySettings, SecuritySettings
from flatshare.core.state import EndpointRoute, InstanceAddress, Routes, VariantRoute
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.names import ModelNames
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.shadow import Shadows
from flatshare.gateway.visitor import Visitor
from flatshare.security.audit import AuditLog
from flatshare.security.entry import Entry
from flatshare.security.guard import Guard
from flatshare.security.keys import KeyFile
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.telemetry.shadows import ShadowMetrics
from flatshare.wire import container
from flatshare.wire.http import Reply, Request


@dataclass
class House:
    """Endpoints whose instances know these targets, and are asked as often as `asked` says."""

    routes: RouteTable
    names: ModelNames
    visit: Callable[[str], Visitor]
    targets: dict[str, set[str]]
    gone: set[str] = field(default_factory=set)
    asked: int = 0

    async def resolve(self, name: str, token: str = "") -> str:
        model = await self.names.resolve(name, self.visit(token))
        assert model.name == name
        return f"{model.endpoint}:{model.target}"


@pytest.fixture
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """With `targets` by endpoint as its parameter."""
    targets: dict[str, set[str]] = request.param
    metrics = GatewayMetrics()
    routes = RouteTable("1")
    shadows = Shadows(routes, ShadowMetrics(metrics.registry), timeout_s=5.0)
    names = ModelNames(routes, Invoker(GatewaySettings(), routes, metrics, shadows))
    file = KeyFile(tmp_path / "keys.json")
    keys = {
        "all": file.create("all", (Grant(("*",)),), 0),
        "a": file.create("a", (Grant(("sagemaker:InvokeEndpoint",), ("a",)),), 0),
    }

    def visit(who: str) -> Visitor:
        security = SecuritySettings("bearer" if who else "none", file.path)
        guard = Guard(security, SystemClock(), region="r", account="1", max_body_bytes=1000)
        key = keys.get(who)
        headers = {} if key is None else {b"authorization": f"Bearer {key.principal.key_id}.{key.secret}".encode()}
        request = Request("POST", "/", headers, id="1")
        return Visitor(Entry(guard, AuditLog(tmp_path / "audit"), metrics, SystemClock()), request.id, lambda: request)

    made = House(routes, names, visit, targets)
    async with AsyncExitStack() as stack:
        endpoints = {}
        for name in targets:
            path = await _instance(made, name, tmp_path, stack)
            variant = VariantRoute(VariantName("v"), 1.0, f"s3://{name}/p", (InstanceAddress(InstanceId(name), path),))
            endpoints[EndpointName(name)] = EndpointRoute(EndpointName(name), is_multi_model=True, variants=(variant,))
        routes.replace(Routes(endpoints))
        yield made
        routes.close()


async def _instance(house: House, name: str, folder: Path, stack: AsyncExitStack) -> str:
    async def handler(request: Request) -> Reply:
        house.asked += 1
        assert request.path.endswith("/artifact")
        if name in house.gone:
            raise ConnectionError
        known = {f"s3://{name}/p/{target}" for target in house.targets[name]}
        if request.header(container.SOURCE_URI) in known:
            return Reply(200)
        return container.error_reply(404, "UnknownTarget", "nothing lies there")

    server = HandlerServer(handler, Bounds(max_body_bytes=1000), drain_s=0.1)
    await server.listen_on_socket(str(folder / name))
    running = asyncio.create_task(server.run())
    stack.push_async_callback(asyncio.wait, {running})
    stack.callback(server.stop)
    return str(folder / name)


TWO = {"a": {"both", "left", "b/x"}, "b": {"both", "right", "x"}}
one = pytest.mark.parametrize("house", [{"a": {"m"}}], indirect=True)
two = pytest.mark.parametrize("house", [TWO], indirect=True)
none = pytest.mark.parametrize("house", [{}], indirect=True)


@one
async def test_with_one_endpoint_any_name_is_its_model_and_nobody_is_asked(house: House) -> None:
    assert await house.resolve("m") == "a:m"
    assert await house.resolve("a/m") == "a:m"
    assert await house.resolve("other/m") == "a:other/m"
    assert house.asked == 0


@two
async def test_the_full_name_is_always_right(house: House) -> None:
    assert await house.resolve("b/x") == "b:x", "an endpoint comes before a target model of the same look"
    assert await house.resolve("a/b/x") == "a:b/x"
    assert house.asked == 0


@two
async def test_a_bare_name_is_looked_for_once(house: House) -> None:
    assert await house.resolve("left") == "a:left"
    assert await house.resolve("right") == "b:right"
    assert house.asked == 4
    assert await house.resolve("left") == "a:left"
    assert house.asked == 4, "a finding holds for a while"


@two
async def test_several_finds_are_refused_with_their_names_and_none_with_the_endpoints(house: House) -> None:
    with pytest.raises(AmbiguousModel, match="call it 'a/both', 'b/both'"):
        await house.resolve("both")
    with pytest.raises(UnknownTarget, match="endpoints are a, b"):
        await house.resolve("nowhere")


@two
async def test_an_endpoint_that_does_not_answer_might_have_it(house: House) -> None:
    house.gone.add("b")
    with pytest.raises(InstanceGone):
        await house.resolve("left")


@none
async def test_without_endpoints_nothing_is_found(house: House) -> None:
    with pytest.raises(UnknownEndpoint, match="no endpoint is in service"):
        await house.resolve("m")
    with pytest.raises(MissingCredentials):
        await house.resolve("m", "stranger")


@two
async def test_what_a_caller_may_not_use_is_to_it_as_if_it_were_not_there(house: House) -> None:
    assert await house.resolve("both", "a") == "a:both"
    assert await house.resolve("right", "a") == "a:right", "to be found missing there"
    assert await house.resolve("b/x", "a") == "a:b/x"
    assert house.asked == 0
    with pytest.raises(AmbiguousModel):
        await house.resolve("both", "all")
    with pytest.raises(MissingCredentials):
        await house.resolve("both", "stranger")


@pytest.mark.parametrize("house", [{"b": {"m"}}], indirect=True)
async def test_a_caller_who_may_go_nowhere_is_told_no_name(house: House) -> None:
    with pytest.raises(AccessDenied) as denied:
        await house.resolve("m", "a")
    assert "endpoint/b" not in str(denied.value)


@two
async def test_an_address_has_a_name_below_its_own_endpoint_only(house: House) -> None:
    assert house.names.name_of("s3://a/p/acme/query", EndpointName("a")) == "a/acme/query"
    assert house.names.name_of("s3://a/p/acme/query", EndpointName("b")) is None
    assert house.names.name_of("s3://a/p/acme/query", EndpointName("gone")) is None
