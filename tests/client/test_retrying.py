"""When the API layer calls again, against a real HTTP server that refuses as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.client.models import Models
from flatshare.client.retrying import Patience, Setback, call_patiently, next_wait_s
from flatshare.core.errors import BadInput, CallFailed, FlatshareError, InstanceGone, ModelNotReady, Overloaded, UnknownEndpoint

Refusal = tuple[int, str, dict[str, str]]
FINE: Refusal = (200, "", {})
QUICK = Patience(attempts=3, first_wait_s=0.001, max_wait_s=0.002)


@contextmanager
def refusing(*refusals: Refusal) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with each of these in turn, then with a vector; its address, and the target models it was asked for."""
    left, seen = list(refusals), list[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.headers["X-Amzn-SageMaker-Target-Model"])
            status, code, headers = left.pop(0) if left else FINE
            body = b'{"embeddings": [[1.0]]}' if status == 200 else orjson.dumps({"Message": f"{code} said so", "OriginalStatusCode": 500})
            self.send_response(status)
            for name, value in (
                {"Content-Type": "application/json", "Content-Length": str(len(body)), "x-amzn-errortype": code} | headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "code"), [(429, "ModelNotReadyException"), (503, "ServiceUnavailable")])
def test_a_refusal_for_the_moment_is_tried_again(status: int, code: str) -> None:
    with refusing((status, code, {}), (status, code, {})) as (url, seen), Models("acme", url=url, patience=QUICK) as models:
        assert models.embed("hello").vectors.tolist() == [[1.0]]
        assert seen == ["acme/embedding@live/query"] * 3


@pytest.mark.parametrize(
    ("status", "code", "attempts", "kind"),
    [
        (429, "ModelNotReadyException", 3, ModelNotReady),
        (503, "ServiceUnavailable", 3, Overloaded),
        (400, "ValidationError", 1, BadInput),
        (424, "ModelError", 1, CallFailed),
        (500, "InternalFailure", 1, CallFailed),
    ],
)
def test_what_stays_refused_is_an_error_of_ours_after_so_many_attempts(
    status: int, code: str, attempts: int, kind: type[FlatshareError]
) -> None:
    with refusing(*[(status, code, {})] * 9) as (url, seen), Models("acme", url=url, patience=QUICK) as models:
        with pytest.raises(kind, match=f"{code} said so"):
            models.embed("hello")
        assert len(seen) == attempts


def test_retry_after_is_honoured() -> None:
    waits = list[float]()
    with refusing((429, "ModelNotReadyException", {"Retry-After": "7"})) as (url, _), Models("acme", url=url) as models:
        runtime = models._runtime
        call_patiently(lambda: runtime.invoke_endpoint(EndpointName="e", TargetModel="t", Body=b""), Patience(), sleep=waits.append)
    assert 7 <= waits[0] <= 7.2


def test_nobody_at_the_address_is_said_so_after_a_few_attempts() -> None:
    with refusing() as (url, _):
        pass
    with Models("acme", url=url, patience=QUICK) as models, pytest.raises(InstanceGone, match="cannot be reached"):
        models.embed("hello")


def test_an_unknown_endpoint_is_named_so() -> None:
    with refusing((400, "Endpoint", {})) as (url, _), Models("acme", url=url) as models, pytest.raises(UnknownEndpoint):
        models.embed("hello")


@given(st.integers(1, 9), st.floats(0, 400), st.floats(0, 0.999), st.one_of(st.none(), st.floats(0, 400)))
def test_a_wait_stays_within_the_bounds(attempt: int, elapsed_s: float, dice: float, asked_s: float | None) -> None:
    patience = Patience()
    wait_s = next_wait_s(patience, Setback(attempt, elapsed_s, True, asked_s), dice)
    if attempt >= patience.attempts:
        assert wait_s is None
    if wait_s is not None:
        assert wait_s >= (asked_s or 0)
        assert elapsed_s + wait_s <= patience.deadline_s
    assert next_wait_s(patience, Setback(attempt, elapsed_s, False, asked_s), dice) is None
