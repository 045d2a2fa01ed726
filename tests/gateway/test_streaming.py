"""Streams through the gateway: what is counted, what is wrapped, and what a broken one becomes."""

import asyncio
from pathlib import Path
from typing import Any

from botocore.eventstream import EventStreamBuffer

from flatshare.gateway.app import FrontDoor
from flatshare.wire import eventstream, generation
from flatshare.wire.http import Reply, Request
from tests.gateway.test_invoke import Instance, gateway
from tests.parts import Parts

LINES = generation.LINES.content_type


def request(road: str) -> Request:
    return Request("POST", f"/endpoints/e/{road}", {b"x-amzn-sagemaker-target-model": b"acme/reply"}, b"hello")


def instance(parts: Parts, content_type: bytes = LINES) -> Instance:
    async def handle(asked: Request) -> Reply:
        return Reply(200, content_type=content_type, parts=parts) if asked.method == "POST" else Reply(404)

    return handle


def in_flight(door: FrontDoor) -> float | None:
    return door._metrics.registry.get_sample_value("flatshare_requests_in_flight")


async def frames(door: FrontDoor, road: str = "invocations-response-stream") -> list[dict[str, Any]]:
    async with asyncio.timeout(30):
        reply = await door.handle(request(road))
        assert reply.content_type == eventstream.CONTENT_TYPE
        buffer = EventStreamBuffer()
        buffer.add_data(reply.body)
        if reply.parts is not None:
            async for part in reply.parts:
                buffer.add_data(part)
            await reply.parts.aclose()
        return [event.to_response_dict() for event in buffer]


async def test_lines_become_frames_of_whole_lines(tmp_path: Path) -> None:
    parts = Parts(b'{"a":', b'1}\n{"b"', b":2}\n", b"rest")
    async with gateway(tmp_path, instance(parts)) as door:
        assert [event["body"] for event in await frames(door)] == [b'{"a":1}\n', b'{"b":2}\n', b"rest"]


async def test_a_last_line_that_is_an_error_becomes_the_exception_of_the_api(tmp_path: Path) -> None:
    parts = Parts(b'{"a":1}\n', generation.LINES.error("the model failed", "ValueError"))
    async with gateway(tmp_path, instance(parts)) as door:
        first, last = await frames(door)
    assert first["body"] == b'{"a":1}\n'
    assert last["headers"][":exception-type"] == "ModelStreamError"
    assert last["body"] == b'{"Message":"the model failed","ErrorCode":"ValueError"}'


async def test_an_instance_that_dies_in_the_middle_becomes_an_internal_failure(tmp_path: Path) -> None:
    async with gateway(tmp_path, instance(Parts(b'{"a":1}\n', breaks=True))) as door:
        *_, last = await frames(door)
    assert last["headers"][":exception-type"] == "InternalStreamFailure"


async def test_what_does_not_stream_is_one_frame_and_an_error_is_an_error(tmp_path: Path) -> None:
    async def whole(request_: Request) -> Reply:
        return Reply(200, b"[1]") if request_.headers[b"x-amzn-sagemaker-target-model"] == b"acme/reply" else Reply(404)

    async with gateway(tmp_path, whole) as door:
        assert [event["body"] for event in await frames(door)] == [b"[1]"]
        bad = request("invocations-response-stream")
        bad.headers[b"x-amzn-sagemaker-target-model"] = b"other"
        reply = await door.handle(bad)
        assert (reply.status, dict(reply.headers)[b"x-amzn-errortype"]) == (424, b"ModelError")


async def test_a_stream_is_in_flight_until_it_is_closed(tmp_path: Path) -> None:
    parts = Parts(b"data: 1\n\n", gate=asyncio.Event())
    async with gateway(tmp_path, instance(parts, generation.EVENTS.content_type)) as door:
        reply = await door.handle(request("invocations"))
        assert reply.parts is not None
        assert await anext(reply.parts) == b"data: 1\n\n"
        assert in_flight(door) == 1
        await reply.parts.aclose()
        assert in_flight(door) == 0
        await parts.is_closed.wait()
