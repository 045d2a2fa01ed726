"""A tenant that calls more than its quota hears 429 and when to come back, on each road; another one is answered meanwhile."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.chaos.conftest import harmed
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import Endpoint, deploy

pytestmark = pytest.mark.slow
SETTINGS = "[queue]\nbatch_tokens = 0\n[tenants.greedy]\nmax_waiting = 2\n"
Road = Callable[[Endpoint, str, str], tuple[http.client.HTTPResponse, bytes]]
GREEDY, GUEST = "greedy/m", "guest/m"
SLOW = "HANG 0.2"  # a text that tests/chaos/faulty_engine.py takes so many seconds over


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    for seed, target in enumerate((GREEDY, GUEST)):
        write_checkpoint(tmp_path / "models" / target, seed)
    with harmed(tmp_path / "server", settings=SETTINGS) as server:
        endpoint = deploy(server, "embeddings", tmp_path / "models")
        for target in (GREEDY, GUEST):
            endpoint.require_right(target)
        yield endpoint


def sagemaker(endpoint: Endpoint, target: str, text: str) -> tuple[http.client.HTTPResponse, bytes]:
    body, headers = orjson.dumps({"inputs": text}), {"X-Amzn-SageMaker-Target-Model": target}
    return post(endpoint, f"/endpoints/{endpoint.name}/invocations", body, headers)


def open_inference(endpoint: Endpoint, target: str, text: str) -> tuple[http.client.HTTPResponse, bytes]:
    body = orjson.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]})
    return post(endpoint, f"/v2/models/{endpoint.name}/{target}/infer", body, {})


def post(endpoint: Endpoint, path: str, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    """Plain HTTP: boto3 would call again by itself."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.server.port, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"} | headers)
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


@contextmanager
def flooded(endpoint: Endpoint, callers: int = 8) -> Iterator[None]:
    """While this lasts, more of the greedy tenant's callers want to be served than may: two run, two wait, the rest come again."""
    is_over = threading.Event()

    def call() -> None:
        while not is_over.is_set():
            reply, said = sagemaker(endpoint, GREEDY, SLOW)
            assert reply.status in {200, 429}, said
            if reply.status == 429:
                is_over.wait(0.02)

    with ThreadPoolExecutor(callers) as pool:
        flood = [pool.submit(call) for _ in range(callers)]
        try:
            yield
        finally:
            is_over.set()
        for caller in flood:
            caller.result()


def refusal(endpoint: Endpoint, road: Road) -> tuple[http.client.HTTPResponse, bytes]:
    """What the greedy tenant hears that is not answered: it calls until then."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        reply, body = road(endpoint, GREEDY, TEXT)
        if reply.status != 200:
            return reply, body
    raise AssertionError("every call was answered")


def test_who_is_over_quota_hears_429_and_when_to_call_again_while_another_tenant_is_answered(endpoint: Endpoint) -> None:
    with flooded(endpoint):
        for road in (sagemaker, open_inference):
            reply, body = refusal(endpoint, road)
            assert (reply.status, int(reply.headers["Retry-After"]) >= 1) == (429, True)
            assert "2 requests of tenant greedy wait already, its limit: call again later" in body.decode()
            if road is sagemaker:
                assert reply.headers["x-amzn-ErrorType"].startswith("ThrottlingException")
        for road in (sagemaker, open_inference):
            reply, body = road(endpoint, GUEST, TEXT)
            assert reply.status == 200, body
        endpoint.require_right(GUEST)
    [instance] = endpoint.instances()
    assert instance["refusal_counts"]["over_quota"] >= 2
