"""An S3 server over a folder that takes its time: only what a model's fetch asks for (HEAD, GET with range, ListObjectsV2)."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "models"


@dataclass(frozen=True, slots=True)
class SlowStore:
    """The environment that leads to it, and the sizes of what it has sent of objects."""

    environment: dict[str, str]
    sent: list[int]

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent)


@contextmanager
def slow_store(folder: Path, delay_s: float) -> Iterator[SlowStore]:
    """Serves `folder` as a bucket; each request waits so long."""
    sent = list[int]()
    handler = type("Handler", (_Handler,), {"folder": folder, "delay_s": delay_s, "sent": sent})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
        yield SlowStore({"AWS_ENDPOINT_URL_S3": address} | keys, sent)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who fetches may be stopped in the middle."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    delay_s: float
    sent: list[int]

    def do_HEAD(self) -> None:  # http.server's name
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.delay_s)
        url = urlsplit(self.path)
        key, query = unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/"), parse_qs(url.query)
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
            return
        path = self.folder / key
        if not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
            return
        self._send(path)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _list(self, prefix: str) -> None:
        files = sorted(path for path in (self.folder / prefix.rstrip("/")).rglob("*") if path.is_file())
        items = "".join(
            f"<Contents><Key>{escape(str(path.relative_to(self.folder)))}</Key><Size>{path.stat().st_size}</Size>"
            f"<ETag>{escape(_tag(path))}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for path in files
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(files)}</KeyCount>{items}</ListBucketResult>"
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _send(self, path: Path) -> None:
        size = path.stat().st_size
        begin, end, headers = 0, size, {"ETag": _tag(path), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1 if last else size)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        if self.command == "HEAD":
            self._answer(200, b"", headers, length=size)
            return
        self._answer(206 if asked else 200, b"", headers, length=end - begin)
        self.wfile.flush()
        # By the kernel: bytes that passed through here would hold up the callers of this process.
        with path.open("rb") as file:
            self.sent.append(self.connection.sendfile(file, begin, end - begin))

    def _answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(path: Path) -> str:
    status = path.stat()
    return f'"{status.st_size}-{status.st_mtime_ns}"'
