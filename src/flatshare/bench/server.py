"""A real server for a benchmark: started as its own process on a free port, and stopped whatever happens."""

import os
import re
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from flatshare.bench.machine import Memory, cpu_seconds, family, memory_of
from flatshare.client.aws import aws_client
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.access import AccessKey

ENDPOINT = "embeddings"
MAPPED_ONLY = '[memory]\nprepacked = "off"\n'
"""Settings of a server that is compared with the bare engine, which runs the mapped weights too."""
_PATIENCE_S = 70
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_INVOCATIONS = f"/endpoints/{ENDPOINT}/invocations"


class RunningServer:
    """A `flatshare serve` process, and what a benchmark asks of it."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", url: str, *, grpc_address: str | None = None, key: AccessKey | None = None
    ) -> None:
        self.process = process
        self.url = url
        self.grpc_address = grpc_address
        self.sagemaker = aws_client("sagemaker", url, key=key)
        self.runtime = aws_client("sagemaker-runtime", url, connections=32, key=key)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def pids(self) -> list[int]:
        return family(self.process.pid)

    def memory(self) -> Memory:
        return memory_of(self.pids())

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pids())

    def deploy(self, prefix: Path) -> None:
        """The calls that a SageMaker deployment makes, and the wait until the endpoint is in service."""
        ensure_endpoint(self.sagemaker, EndpointPlan(ENDPOINT, f"file://{prefix}/"))
        self.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def close(self) -> None:
        """Let it drain; kill it if it does not."""
        self.process.terminate()
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def status(self) -> dict[str, Any]:
        """The one instance's status."""
        with urllib.request.urlopen(f"{self.url}/flatshare/status", timeout=10) as answer:  # noqa: S310  # our own server
            instance: dict[str, Any] = orjson.loads(answer.read())["instances"][0]
            return instance

    def invoke(self, target: str, text: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Through boto3: the answer and the HTTP headers."""
        body = orjson.dumps({"inputs": text})
        reply = self.runtime.invoke_endpoint(EndpointName=ENDPOINT, TargetModel=target, ContentType="application/json", Body=body)
        return orjson.loads(reply["Body"].read()), reply["ResponseMetadata"]["HTTPHeaders"]

    def unload_all(self) -> int:
        """By the container contract, at the instance's own door. How many models were unloaded."""
        status = self.status()
        for model in status["models"]:
            with PlainCaller.to_socket(status["socket"]) as caller:
                caller.request("DELETE", f"/models/{model['key']}", b"")
        return len(status["models"])


@contextmanager
def running_server(
    data_dir: Path, prefix: Path, memory: str, *, key: AccessKey | None = None, settings: str = MAPPED_ONLY, before: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """A server with one endpoint in service over the checkpoints below `prefix`, stopped at the end. With a key, it asks for signatures.

    `settings` is what its file of settings says.
    """
    settings_file = data_dir.with_suffix(".toml")
    settings_file.write_text(settings)
    server = start_server(data_dir, memory, key=key, options=("--settings", str(settings_file)), before=before)
    try:
        server.deploy(prefix)
        yield server
    finally:
        server.close()


def start_server(
    data_dir: Path,
    memory: str,
    *,
    log_file: Path | None = None,
    key: AccessKey | None = None,
    options: Sequence[str] = (),
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> RunningServer:
    """A server that goes on until it is closed, in a session of its own. Its log goes to `log_file`, or where ours goes.

    `options` are further ones of `serve`, `before` is a command that runs it, `environment` is added to ours.
    """
    command = [*before, sys.executable, "-m", "flatshare", "serve", "--data", str(data_dir), "--port", "0", "--memory", memory, "--json"]
    command += ["--auth", "none" if key is None else "sigv4"]
    with log_file.open("ab") if log_file is not None else nullcontext() as log:
        process = subprocess.Popen(
            [*command, *options, "--log-level", "warning"],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=os.environ | dict(environment or {}),
        )
    greeting = _first_json(process)
    return RunningServer(process, greeting["url"], grpc_address=greeting["grpc"], key=key)


def _first_json(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The greeting that `serve --json` prints once it listens."""
    assert process.stdout is not None
    text = b""
    for line in process.stdout:
        text += line
        if line.rstrip() == b"}":
            greeting: dict[str, Any] = orjson.loads(text)
            return greeting
    raise RuntimeError(f"the server stopped before it listened, with status {process.wait()}")


class PlainCaller:
    """One keep-alive HTTP/1.1 connection, with as little of its own as can be: what it takes would count as the server's."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)  # the kernel watches the time: Python would ask it twice for every read
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _PATIENCE_S, 0))
        self._connection = connection

    @classmethod
    def to_port(cls, port: int) -> Self:
        connection = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connection)

    @classmethod
    def to_socket(cls, path: str) -> Self:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: bytes, headers: str = "") -> tuple[int, bytes]:
        """Status and body."""
        return self.exchange(_message(method, path, body, headers))

    def exchange(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request that is already in bytes."""
        self._connection.sendall(message)
        answer = self._more(b"")
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer = self._more(answer)
        length = _LENGTH.search(answer, 0, end + 2)
        if length is None:
            raise ConnectionError(f"an answer that does not say how long it is: {answer[:200]!r}")
        whole = end + 4 + int(length[1])
        while len(answer) < whole:
            answer = self._more(answer)
        return int(answer[9:12]), answer[end + 4 :]

    def _more(self, answer: bytes) -> bytes:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the server hung up")
        return answer + data if answer else data

    def invoke(self, target: str, body: bytes) -> bytes:
        """InvokeEndpoint without the SDK. Raises RuntimeError unless it is answered with 200."""
        status, answer = self.exchange(invocation(target, body))
        if status != 200:
            raise RuntimeError(f"{target}: {status} {answer[:300]!r}")
        return answer


def invocation(target: str, body: bytes) -> bytes:
    """An InvokeEndpoint request, ready to be sent."""
    return _message("POST", _INVOCATIONS, body, f"X-Amzn-SageMaker-Target-Model: {target}\r\n")


def signed_invocation(target: str, body: bytes, key: AccessKey) -> bytes:
    """The same, signed now."""
    headers = {"Host": "localhost", "Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": target}
    request = AWSRequest("POST", f"http://localhost{_INVOCATIONS}", data=body, headers=headers)
    SigV4Auth(Credentials(key.principal.key_id, key.secret), "sagemaker", "us-east-1").add_auth(request)
    added = "".join(f"{name}: {request.headers[name]}\r\n" for name in ("X-Amzn-SageMaker-Target-Model", "X-Amz-Date", "Authorization"))
    return _message("POST", _INVOCATIONS, body, added)


def _message(method: str, path: str, body: bytes, headers: str) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
