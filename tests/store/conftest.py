"""A real S3 server that verifies signatures (nanio), and a proxy before it that counts and can be told to fail."""

import contextlib
import http.client
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

if TYPE_CHECKING:
    from _typeshed import StrPath

KEY, SECRET, BUCKET = "test-key", "test-secret-not-in-use-elsewhere", "models"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that passed the proxy."""

    method: str
    path: str
    range: str | None
    if_match: str | None


@dataclass
class Proxy:
    """Stands before the server: `seen` tells what was asked; what else can be set makes it misbehave."""

    server_port: int
    seen: list[Seen] = field(default_factory=list)
    cut_after: int | None = None
    status: int | None = None
    before: Callable[[Seen], None] | None = None
    is_damaging: bool = False
    """The first byte of each range is another one than the server sent."""
    headers: dict[str, str] = field(default_factory=dict)
    """Added to every answer."""
    port: int = 0

    def ranges(self) -> list[str | None]:
        return [request.range for request in self.seen if request.method == "GET" and "list-type" not in request.path]


@dataclass(frozen=True, slots=True)
class S3:
    """The server as a test uses it."""

    port: int
    client: Any

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("nanio")
    with socket.create_server(("127.0.0.1", 0)) as free:  # nanio accepts no port 0
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("nanio")), "serve", "--data-dir", str(folder), "--host", "127.0.0.1"]
    environment = {**os.environ, "NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}
    with subprocess.Popen([*command, "--port", str(port), "--no-access-log"], env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert any("running on" in line for line in server.stderr), "nanio did not start"
            drain = threading.Thread(target=server.stderr.read)  # so that the server never waits for a reader of its log
            drain.start()
            client = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
                region_name="us-east-1",
            )
            client.create_bucket(Bucket=BUCKET)
            yield S3(port, client)
            client.close()
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
        drain.join()


@pytest.fixture
def s3(s3_server: S3, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, and the environment that leads to it through the proxy."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server


@pytest.fixture
def proxy(s3_server: S3) -> Iterator[Proxy]:
    state = Proxy(s3_server.port)

    class Handler(_ProxyHandler):
        proxy = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


class _ProxyHandler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        request = Seen(self.command, self.path, self.headers.get("Range"), self.headers.get("If-Match"))
        self.proxy.seen.append(request)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.proxy.before:
            self.proxy.before(request)
        if self.proxy.status:
            self._answer(self.proxy.status, [], b"")
            return
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)) as server:
            server.request(self.command, self.path, sent or None, headers=dict(self.headers.items()))  # Host too: it is signed
            response = server.getresponse()
            body = response.read()
            if self.proxy.is_damaging and request.range:
                body = bytes([body[0] ^ 1]) + body[1:]
            self._answer(response.status, [*response.getheaders(), *self.proxy.headers.items()], body)

    do_HEAD = do_GET  # noqa: N815 - the base class names it
    do_PUT = do_GET  # noqa: N815 - the base class names it

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.proxy.cut_after is not None and len(body) > self.proxy.cut_after:
            self.wfile.write(body[: self.proxy.cut_after])
            self.proxy.status = 503  # and nothing more from now on
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Quiet."""


@contextmanager
def full_disk_at(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the one way to meet a full disk for real without root's right to mount a small one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree_of(folder: "StrPath") -> dict[str, bytes | None]:
    """Each path below the folder with its content, None for a folder."""
    top = Path(folder)
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")}
