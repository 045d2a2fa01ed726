"""boto3 in both of its retry modes against a gateway behind a real port: what each retries, and what it raises."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from flatshare.core.settings import GatewaySettings
from flatshare.gateway.app import FrontDoor
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer
from flatshare.wire import container
from flatshare.wire.http import Reply, Request
from tests.gateway.test_invoke import Instance, gateway

pytestmark = pytest.mark.slow
MODES = ["legacy", "standard"]


@contextmanager
def port_of(folder: Path, *instances: Instance, settings: GatewaySettings | None = None) -> Iterator[int]:
    """A gateway with these instances, on a thread and behind a port of its own."""
    ports: list[int] = []
    is_up, stop = threading.Event(), threading.Event()

    async def main() -> None:
        async with gateway(folder, *instances, settings=settings) as door:
            await serve(door)

    async def serve(door: FrontDoor) -> None:
        server = HandlerServer(door.handle, Bounds(max_body_bytes=1 << 20), drain_s=1.0)
        ports.append(await server.listen_on_port("127.0.0.1", 0))
        running = asyncio.create_task(server.run())
        is_up.set()
        await asyncio.to_thread(stop.wait)
        server.stop()
        await running

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert is_up.wait(15)
        yield ports[0]
    finally:
        stop.set()
        thread.join(15)


def invoke(port: int, mode: Any) -> dict[str, Any]:
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"mode": mode, "max_attempts": 2}, read_timeout=30),
    )
    try:
        answer: dict[str, Any] = client.invoke_endpoint(EndpointName="e", TargetModel="m", ContentType="text/plain", Body=b"hello")
        return answer
    finally:
        client.close()


class Once:
    """An instance that answers the first call in its own way, and every other well."""

    def __init__(self, first: Reply | None) -> None:
        self.calls = 0
        self._first = first

    async def __call__(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(404, b"{}")  # asked whether the model is loaded
        self.calls += 1
        if self.calls > 1:
            return Reply(200, b"{}")
        if self._first is not None:
            return self._first
        await asyncio.Event().wait()  # still loading
        raise AssertionError


@pytest.mark.parametrize("mode", MODES)
def test_unavailable_is_retried_in_both_modes(tmp_path: Path, mode: str) -> None:
    instance = Once(container.error_reply(507, "OutOfMemory", "no room now"))
    with port_of(tmp_path, instance) as port:
        answer = invoke(port, mode)
    assert (answer["ResponseMetadata"]["RetryAttempts"], instance.calls) == (1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_s_own_error_is_never_retried(tmp_path: Path, mode: str) -> None:
    instance = Once(container.error_reply(400, "BadPackage", "a pickle"))
    with port_of(tmp_path, instance) as port, pytest.raises(ClientError) as failed:
        invoke(port, mode)
    response: Any = failed.value.response
    assert (response["Error"]["Code"], response["OriginalStatusCode"], instance.calls) == ("ModelError", 400, 1)


def test_a_model_that_is_not_ready_is_retried_in_legacy_mode(tmp_path: Path) -> None:
    instance = Once(None)
    with port_of(tmp_path, instance, settings=GatewaySettings(hold_s=0.05)) as port:
        assert invoke(port, "legacy")["ResponseMetadata"]["RetryAttempts"] == 1


def test_a_model_that_is_not_ready_is_raised_at_once_in_standard_mode(tmp_path: Path) -> None:
    """Which is why cold requests are held for a minute, instead of being answered with 429 at once."""
    instance = Once(None)
    with port_of(tmp_path, instance, settings=GatewaySettings(hold_s=0.05)) as port, pytest.raises(ClientError) as failed:
        invoke(port, "standard")
    assert failed.value.response["Error"]["Code"] == "ModelNotReadyException"
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert instance.calls == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_can_never_be_right_is_not_retried(tmp_path: Path, mode: str) -> None:
    instance = Once(container.error_reply(404, "UnknownTarget", "nothing lies there"))
    with port_of(tmp_path, instance) as port, pytest.raises(ClientError) as failed:
        invoke(port, mode)
    assert (failed.value.response["Error"]["Code"], instance.calls) == ("ValidationError", 1)
