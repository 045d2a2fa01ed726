"""All-resident mode: what has to answer before a deployment may begin, and what has not."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from flatshare.control.residence import Below
from flatshare.core.errors import Abandoned, FlatshareError, StoreUnavailable, UnknownTarget
from flatshare.core.spec import ModelSize
from flatshare.wire.http import Request

from .calls import call, container, variant
from .conftest import House, running_house, running_server

MB = 1_000_000
MINE, THEIRS = "s3://mine/", "s3://theirs/"
DEAD = StoreUnavailable("The store of 's3://theirs' does not answer as it should: try again.")
DENIED = UnknownTarget("'s3://theirs' may not be read: check the credentials.")


def models(count: int, size_mb: int) -> tuple[ModelSize, ...]:
    return tuple(ModelSize(0, {}, {f"own {index}": size_mb * MB}) for index in range(count))


@dataclass(slots=True)
class Stores:
    """What lies where: models, or what the store answers instead; `...` if it answers nothing while somebody waits."""

    there: dict[str, Any] = field(default_factory=dict)
    known: dict[str, tuple[ModelSize, ...]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    has_ended: threading.Event = field(default_factory=threading.Event)
    on_look: Callable[[], object] = lambda: None

    def below(self, **limits: float) -> Below:
        return Below(self._listed, lambda prefix, _: self.known.get(prefix, ()), **limits)

    def _listed(self, prefix: str, is_over: Callable[[], bool]) -> Iterator[ModelSize]:
        self.asked.append(prefix)
        self.on_look()
        there = self.there.get(prefix, ())
        while there is ...:
            if is_over():
                self.has_ended.set()
                raise Abandoned("nobody waits")
            threading.Event().wait(0.005)
        if isinstance(there, FlatshareError):
            raise there
        yield from there


async def configured(house: House, name: str, *prefixes: str, count: int = 1) -> dict[str, str]:
    """Models and a configuration with a variant for each prefix; the members of the CreateEndpoint that is to follow."""
    for number, prefix in enumerate(prefixes):
        await call(house.control, "CreateModel", ModelName=f"{name}-{number}", PrimaryContainer=container(ModelDataUrl=prefix))
    variants = [variant(f"v{number}", model=f"{name}-{number}", count=count) for number in range(len(prefixes))]
    await call(house.control, "CreateEndpointConfig", EndpointConfigName=name, ProductionVariants=variants)
    return {"EndpointName": name, "EndpointConfigName": name}


async def deployed(house: House, name: str, *prefixes: str, count: int = 1) -> None:
    await call(house.control, "CreateEndpoint", **await configured(house, name, *prefixes, count=count))
    await in_service(house, name)


async def in_service(house: House, name: str) -> None:
    async with asyncio.timeout(10):
        while (await call(house.control, "DescribeEndpoint", EndpointName=name))["EndpointStatus"] != "InService":  # noqa: ASYNC110  (rows of a database have no event)
            await asyncio.sleep(0)


async def failure(house: House, operation: str, **params: Any) -> tuple[int, str, str]:
    """Status, code and sentence."""
    request = Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, orjson.dumps(params))
    reply = await house.control.handle(request)
    answer = orjson.loads(reply.body)
    return reply.status, answer["__type"], answer.get("message") or answer["Message"]


def change(**numbers: Any) -> dict[str, Any]:
    return {"EndpointName": "e", "DesiredWeightsAndCapacities": [{"VariantName": "v0"} | numbers]}


@pytest.mark.parametrize("trouble", [DEAD, DENIED, ...], ids=["dead", "denied", "silent"])
async def test_another_endpoint_s_store_forbids_nothing(trouble: Any) -> None:
    stores = Stores()
    async with running_house(below=stores.below(others_s=0.02)) as house:
        await deployed(house, "other", THEIRS)
        stores.there[THEIRS] = trouble
        await deployed(house, "e", MINE)
        await call(house.control, "UpdateEndpointWeightsAndCapacities", **change(DesiredInstanceCount=2))
    assert stores.asked.count(THEIRS) == 3


async def test_of_another_endpoint_whose_store_is_dead_counts_what_was_imported_here() -> None:
    stores = Stores({THEIRS: DEAD}, known={THEIRS: models(10, 150)})
    stores.there[THEIRS] = models(10, 150)
    async with running_house(below=stores.below()) as house:
        await deployed(house, "other", THEIRS)
        stores.there[THEIRS] = DEAD
        status, code, message = await failure(house, "CreateEndpoint", **await configured(house, "e", MINE))
    assert (status, code) == (400, "ResourceLimitExceeded")
    assert 'the 10 models of endpoint "other"' in message
    assert THEIRS not in message


async def test_its_own_store_has_to_answer_and_the_call_may_be_tried_again() -> None:
    stores = Stores({MINE: StoreUnavailable("The store of 's3://mine' does not answer as it should: try again.")})
    async with running_house(below=stores.below()) as house:
        create = await configured(house, "e", MINE)
        status, code, message = await failure(house, "CreateEndpoint", **create)
        assert (status, code) == (503, "ServiceUnavailable")
        assert message == "The store of 's3://mine' does not answer as it should: try again."
        assert (await call(house.control, "ListEndpoints"))["Endpoints"] == []
        stores.there[MINE] = UnknownTarget("'s3://mine' may not be read: check the credentials.")
        status, code, message = await failure(house, "CreateEndpoint", **create)
        assert (status, code) == (400, "ValidationException")
        assert "'s3://mine' may not be read" in message


@pytest.mark.slow
def test_boto3_tries_again_by_itself_when_the_store_did_not_answer() -> None:
    stores = Stores({MINE: DEAD})

    def heal() -> None:
        if len(stores.asked) > 1:
            stores.there[MINE] = ()

    stores.on_look = heal
    with running_server(below=stores.below()) as server:
        client = server.client({"mode": "standard", "total_max_attempts": 3})
        client.create_model(ModelName="m", PrimaryContainer=container(ModelDataUrl=MINE))
        client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()])
        created = client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    assert created["ResponseMetadata"]["RetryAttempts"] == 1


async def test_a_look_that_takes_too_long_is_given_up_and_ends() -> None:
    stores = Stores({MINE: ...})
    async with running_house(below=stores.below(look_s=0.05)) as house:
        status, code, message = await failure(house, "CreateEndpoint", **await configured(house, "e", MINE))
    assert (status, code) == (503, "ServiceUnavailable")
    assert "models below 's3://mine/' could not be listed within 0 s: call again" in message
    assert stores.has_ended.wait(10)


async def test_prefixes_are_asked_at_the_same_time() -> None:
    stores = Stores()
    stores.on_look = threading.Barrier(3, timeout=10).wait
    async with running_house(below=stores.below()) as house:
        await call(house.control, "CreateEndpoint", **await configured(house, "e", MINE, THEIRS, "s3://third/"))
    assert sorted(stores.asked) == [MINE, THEIRS, "s3://third/"]


async def test_a_change_of_weights_asks_no_store_and_needs_no_room() -> None:
    stores = Stores()
    async with running_house(below=stores.below()) as house:
        await deployed(house, "e", MINE)
        stores.there[MINE] = DEAD
        stores.asked.clear()
        await call(house.control, "UpdateEndpointWeightsAndCapacities", **change(DesiredWeight=3.0))
        await in_service(house, "e")
        await configured(house, "same", MINE)
        await call(house.control, "UpdateEndpoint", EndpointName="e", EndpointConfigName="same")
    assert stores.asked == []


async def test_an_endpoint_that_outgrew_its_memory_may_be_scaled_where_it_helps() -> None:
    stores = Stores()
    async with running_house(below=stores.below()) as house:
        await deployed(house, "other", THEIRS, count=3)
        await deployed(house, "e", MINE, count=2)
        stores.there[MINE] = models(100, 20)
        await call(house.control, "UpdateEndpointWeightsAndCapacities", **change(DesiredInstanceCount=4))
        await in_service(house, "e")
        status, code, _ = await failure(house, "UpdateEndpointWeightsAndCapacities", **change(DesiredInstanceCount=1))
    assert (status, code) == (400, "ResourceLimitExceeded")


async def test_an_operation_that_is_refused_anyway_asks_no_store() -> None:
    stores = Stores({MINE: DEAD})
    async with running_house(below=stores.below()) as house:
        status, code, _ = await failure(house, "CreateEndpoint", EndpointName="e", EndpointConfigName="none")
    assert (status, code, stores.asked) == (400, "ValidationException", [])
