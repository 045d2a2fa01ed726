"""Two control planes over one database: both answer, one acts, and nothing that either was told is lost."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from flatshare.control.plane import Control
from flatshare.core.ids import EndpointName
from flatshare.policy.diff import Status
from flatshare.wire.http import Request

from .calls import call, call_deploy, container
from .conftest import running_house

E = EndpointName("e")
ARN = "arn:aws:sagemaker:us-east-1:000000000000:model/m"


async def test_one_acts_on_what_either_was_told(database_url: str) -> None:
    async with running_house(database_url) as first, running_house(database_url) as second:
        await call_deploy(second.control)
        await first.until_status("e", Status.IN_SERVICE)
        await second.until_status("e", Status.IN_SERVICE)
        assert (len(first.driver.instances), len(second.driver.instances)) == (1, 0)
        assert second.routes.endpoints[E].variants[0].instances == ()  # known there, so that callers hear 503 and not 400
        await call(second.control, "DeleteEndpoint", EndpointName="e")
        await first.until(lambda: not first.driver.instances)
        await second.until(lambda: E not in second.routes.endpoints)


async def test_when_the_one_that_acts_ends_the_other_takes_over(database_url: str) -> None:
    async with AsyncExitStack() as first_stays:
        first = await first_stays.enter_async_context(running_house(database_url))
        await call_deploy(first.control)
        await first.until_status("e", Status.IN_SERVICE)
        async with running_house(database_url) as second:
            assert second.driver.instances == {}
            await first_stays.aclose()
            await second.until(lambda: len(second.driver.instances) == 1)
            await second.until_status("e", Status.IN_SERVICE)
            assert len(second.routes.endpoints[E].variants[0].instances) == 1


async def attempt(control: Control, operation: str, **params: Any) -> tuple[int, dict[str, Any]]:
    reply = await control.handle(Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, orjson.dumps(params)))
    return reply.status, orjson.loads(reply.body)


@pytest.mark.slow
async def test_callers_of_both_lose_no_update(database_url: str) -> None:
    count = 20
    async with running_house(database_url) as first, running_house(database_url) as second:
        await call(first.control, "CreateModel", ModelName="m", PrimaryContainer=container())

        async def tag(control: Control, who: str) -> None:
            for number in range(count):
                entry = [{"Key": f"{who}-{number}", "Value": "x"}]
                while (await attempt(control, "AddTags", ResourceArn=ARN, Tags=entry))[0] == 503:
                    pass

        await asyncio.gather(tag(first.control, "a"), tag(second.control, "b"))
        tags = await call(first.control, "ListTags", ResourceArn=ARN)
        assert {entry["Key"] for entry in tags["Tags"]} == {f"{who}-{number}" for who in "ab" for number in range(count)}


async def test_of_two_callers_that_create_the_same_one_is_told_that_it_exists(database_url: str) -> None:
    async with running_house(database_url) as first, running_house(database_url) as second:
        for number in range(5):
            answers = await asyncio.gather(
                *(attempt(house.control, "CreateModel", ModelName=f"m{number}", PrimaryContainer=container()) for house in (first, second))
            )
            [refused] = [answer for status, answer in answers if status != 200]
            assert refused["message"].startswith("Cannot create already existing model")


async def test_the_quota_holds_across_control_planes(database_url: str) -> None:
    async with running_house(database_url, max_instances=1) as first, running_house(database_url, max_instances=1) as second:
        await call(first.control, "CreateModel", ModelName="m", PrimaryContainer=container())
        variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
        await call(first.control, "CreateEndpointConfig", EndpointConfigName="c", ProductionVariants=[variant])
        answers = await asyncio.gather(
            attempt(first.control, "CreateEndpoint", EndpointName="e", EndpointConfigName="c"),
            attempt(second.control, "CreateEndpoint", EndpointName="f", EndpointConfigName="c"),
        )
        [refused] = [answer for status, answer in answers if status != 200]
        assert refused["__type"] == "ResourceLimitExceeded"
