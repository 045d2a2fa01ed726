"""Containers of the SageMaker contract, as benchmarks drive them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from flatshare.bench.machine import cpu_seconds, family
from flatshare.bench.server import PlainCaller

_MEMORY = "16GiB"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A container of the SageMaker contract."""

    name: str
    port: int
    pid: int

    def request(self, method: str, path: str, body: object = b"") -> tuple[int, bytes]:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        with PlainCaller.to_port(self.port) as caller:
            return caller.request(method, path, content)

    @property
    def cpu_s(self) -> float:
        """Of all processes of the server."""
        return cpu_seconds(family(self.pid))

    def ensure_loaded(self, key: str, folder: Path) -> None:
        if self.request("GET", f"/models/{key}")[0] == 404:
            self.load(key, folder)

    def load(self, key: str, folder: Path) -> None:
        self._must("POST", "/models", {"model_name": key, "url": str(folder)})

    def unload(self, key: str) -> None:
        self._must("DELETE", f"/models/{key}")

    def invoke(self, key: str, body: bytes) -> bytes:
        return self._must("POST", f"/models/{key}/invoke", body)

    def _must(self, method: str, path: str, body: object = b"") -> bytes:
        status, answer = self.request(method, path, body)
        if status != 200:
            raise RuntimeError(f"{self.name}: {method} {path}: {status} {answer[:500]!r}")
        return answer


@contextmanager
def flatshare_instance(store: Path, *options: str) -> Iterator[Contestant]:
    """On a free port, stopped whatever happens."""
    command = [sys.executable, "-m", "flatshare", "instance", "--port", "0", "--store", str(store), "--memory", _MEMORY, *options]
    process = subprocess.Popen([*command, "--json-logs"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        port = next(event["port"] for event in map(orjson.loads, process.stderr) if event.get("event") == "instance_listens")
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Contestant("flatshare", port, process.pid)
    finally:
        process.terminate()
        process.wait()
