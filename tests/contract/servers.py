"""The two servers that a suite of the contract runs on: our instance as a program, and real NVIDIA Triton."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.contract.triton_server import running_triton

TARGET = "X-Amzn-SageMaker-Target-Model"
_PORT = re.compile(rb'"event": ?"instance_listens".*"port": ?(\d+)|"port": ?(\d+).*"instance_listens"')


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])

    def output(self, name: str) -> list[Any]:
        return list(next(tensor["data"] for tensor in self.json["outputs"] if tensor["name"] == name))


@dataclass(frozen=True)
class ContainerServer:
    """A container of the SageMaker contract."""

    name: str
    port: int
    pid: int

    def call(self, method: str, path: str, body: bytes | object = b"", headers: Mapping[str, str] | None = None) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, content, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def load(self, key: str, folder: Path, target: str | None = None) -> Answer:
        headers = {TARGET: target} if target else {}
        return self.call("POST", "/models", {"model_name": key, "url": str(folder)}, headers)

    def infer(self, key: str, inputs: list[dict[str, Any]], target: str | None = None, **fields: Any) -> Answer:
        headers = {"Content-Type": "application/json"} | ({TARGET: target} if target else {})
        return self.call("POST", f"/models/{key}/invoke", {"inputs": inputs, **fields}, headers)

    def unload(self, key: str, target: str | None = None) -> Answer:
        return self.call("DELETE", f"/models/{key}", headers={TARGET: target} if target else {})


@contextmanager
def flatshare_instance(folder: Path, *options: str) -> Iterator[ContainerServer]:
    """`flatshare instance` on a free port, its log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flatshare", "instance", "--port", "0", "--store", str(folder / "store"), "--json-logs", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    lines: list[bytes] = []
    port = 0
    try:
        for line in process.stdout:
            lines.append(line)
            if match := _PORT.search(line):
                port = int(match[1] or match[2])
                break
        assert port, b"".join(lines).decode()
        drain = threading.Thread(target=_drain, args=(process.stdout, folder / "instance.log"), daemon=True)
        drain.start()
        yield ContainerServer("flatshare", port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _drain(stream: Any, log: Path) -> None:
    with log.open("wb", buffering=0) as file:
        for line in stream:
            file.write(line)


@contextmanager
def real_triton(folder: Path) -> Iterator[ContainerServer]:
    with running_triton(folder) as server:
        yield ContainerServer("triton", server.sagemaker_port, server.pid)


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
