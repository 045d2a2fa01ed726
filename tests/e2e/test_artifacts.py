"""Where a checkpoint may lie and how it may be packed: always the same model, by digest and by answer."""

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from flatshare.bench.server import PlainCaller, RunningServer
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from tests.e2e.checkpoints import pack, write_checkpoint
from tests.e2e.servers import Endpoint, clean_environment, require_vector, serving, until
from tests.store.faults import FaultyProxy, cut_after, refused

pytestmark = pytest.mark.slow
KEY, SECRET, BUCKET = "test-key", "test-secret-not-in-use-elsewhere", "models"
FORMS = ("", ".tar", ".tar.gz", ".tar.zst")
OUT_OF_REACH_WITHIN_S = 20.0  # connecting fails at once; four tries and the pauses between them


@dataclass(frozen=True, slots=True)
class S3:
    """A folder and a port: a real S3 server over it can be started and stopped."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL_S3": self.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    @contextmanager
    def up(self) -> Iterator[Any]:
        """A boto3 client of the server, which stops when this ends."""
        command = [str(Path(sys.executable).with_name("nanio")), "serve", "--data-dir", str(self.folder), "--host", "127.0.0.1"]
        environment = clean_environment({"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET})
        command += ["--port", str(self.port), "--no-access-log"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            try:
                assert any("running on" in line for line in server.stderr), "nanio did not start"
                reader = threading.Thread(target=server.stderr.read)  # so that it never waits for a reader of its log
                reader.start()
                client: Any = boto3.client(
                    "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
                )
                yield client
                client.close()
            finally:
                server.kill()
                server.wait(10)
            reader.join()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> S3:
    return _new_s3(tmp_path_factory.mktemp("nanio"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("one") / "model", 700)


@pytest.fixture(scope="module")
def s3_server(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("artifacts"), environment=s3.environment) as server:
        yield server


@pytest.fixture(scope="module")
def places(s3: S3, s3_server: RunningServer, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Endpoint]]:
    """Endpoints over both stores, each with the same checkpoint in every form; S3 is up while they are used."""
    folder = tmp_path_factory.mktemp("forms")
    write_checkpoint(folder / "model", 700)
    for form in FORMS[1:]:
        pack(checkpoint, folder / f"model{form}")
    with s3.up() as client:
        _upload(client, folder, "encoders/")
        prefixes = {"file": f"file://{folder}/", "s3": f"s3://{BUCKET}/encoders/"}
        for scheme, prefix in prefixes.items():
            ensure_endpoint(s3_server.sagemaker, EndpointPlan(f"over-{scheme}", prefix))
        yield {scheme: Endpoint(s3_server, f"over-{scheme}", folder) for scheme in prefixes}


@pytest.mark.parametrize("scheme", ["file", "s3"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_served_in_every_form_from_every_store(
    places: dict[str, Endpoint], checkpoint: Path, scheme: str, form: str
) -> None:
    answer = places[scheme].invoke(f"model{form}")
    require_vector(answer.vectors[0], checkpoint)
    assert answer.is_cold


def test_the_digest_is_that_of_the_content_whatever_its_form_and_store(places: dict[str, Endpoint]) -> None:
    assert len({place.invoke(f"model{form}").digest for place in places.values() for form in FORMS}) == 1


def test_a_key_that_is_missing_in_s3_is_a_validation_error_that_names_it(places: dict[str, Endpoint]) -> None:
    for target in ("nobody", "nobody.tar.gz"):
        failure = places["s3"].failure(TargetModel=target)
        assert (failure.code, failure.status) == ("ValidationError", 400)
        assert f"Nothing lies at 's3://{BUCKET}/encoders/{target}'" in failure.message


def test_a_store_that_is_down_is_reported_in_bounded_time_and_served_from_again_when_it_is_back(tmp_path: Path) -> None:
    s3, checkpoint = _new_s3(tmp_path / "nanio"), write_checkpoint(tmp_path / "model", 701)
    with serving(tmp_path / "data", environment=s3.environment) as server:
        ensure_endpoint(server.sagemaker, EndpointPlan("unsteady", f"s3://{BUCKET}/"))
        endpoint = Endpoint(server, "unsteady", tmp_path)
        started_s = time.monotonic()
        failure = endpoint.failure(TargetModel="model")
        assert time.monotonic() - started_s < OUT_OF_REACH_WITHIN_S
        assert (failure.code, failure.status) == ("InternalDependencyException", 530)
        assert f"s3://{BUCKET}/model" in failure.message
        with s3.up() as client:
            _upload(client, checkpoint, "model/")
            require_vector(endpoint.invoke("model").vectors[0], checkpoint)
        require_vector(endpoint.invoke("model").vectors[0], checkpoint)  # in memory: the store is not needed


def _new_s3(folder: Path) -> S3:
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:  # nanio accepts no port 0
        return S3(folder, free.getsockname()[1])


def _upload(client: Any, folder: Path, prefix: str) -> None:
    client.create_bucket(Bucket=BUCKET)
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}{path.relative_to(folder)}", Body=path.read_bytes())


def test_behind_a_bad_network_a_model_answers_rightly_or_with_a_clear_error_and_in_the_end_rightly(tmp_path: Path) -> None:
    s3, checkpoint = _new_s3(tmp_path / "nanio"), write_checkpoint(tmp_path / "model", 702)
    with s3.up() as client, FaultyProxy(s3.port).up() as proxy:
        _upload(client, checkpoint, "model/")
        environment = s3.environment | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}
        with serving(tmp_path / "data", environment=environment) as server:
            ensure_endpoint(server.sagemaker, EndpointPlan("shaky", f"s3://{BUCKET}/"))
            endpoint = Endpoint(server, "shaky", tmp_path)
            proxy.ever = refused(503)
            failure = endpoint.failure(TargetModel="model")
            assert (failure.code, failure.status) == ("InternalDependencyException", 530)
            assert f"s3://{BUCKET}/model" in failure.message
            dice = random.Random(3)
            faults = [refused(500), refused(503), cut_after(0), cut_after(500), cut_after(9_000), None]
            proxy.script = [dice.choice(faults) for _ in range(25)]
            proxy.ever = None
            until(lambda: _is_right_or_a_clear_error(endpoint, checkpoint), within_s=60)


def _is_right_or_a_clear_error(endpoint: Endpoint, checkpoint: Path) -> bool:
    try:
        answer = endpoint.invoke("model")
    except ClientError as error:
        if error.response["Error"]["Code"] != "InternalDependencyException":
            raise
        return False
    require_vector(answer.vectors[0], checkpoint)
    return True


def test_another_version_under_the_same_key_waits_for_an_eviction_if_it_is_told_to(tmp_path: Path) -> None:
    s3 = _new_s3(tmp_path / "nanio")
    old, new = (write_checkpoint(tmp_path / f"{seed}", seed) for seed in (703, 704))
    with s3.up() as client, serving(tmp_path / "data", environment=s3.environment, options=("--changed-artifacts", "keep")) as server:
        client.create_bucket(Bucket=BUCKET)
        _upload_packed(client, old)
        ensure_endpoint(server.sagemaker, EndpointPlan("kept", f"s3://{BUCKET}/"))
        endpoint = Endpoint(server, "kept", tmp_path)
        require_vector(endpoint.invoke("model.tar").vectors[0], old)
        _upload_packed(client, new)
        require_vector(endpoint.invoke("model.tar").vectors[0], old)
        [instance] = endpoint.instances()
        with PlainCaller.to_socket(instance["socket"]) as caller:
            assert caller.request("DELETE", f"/models/{instance['models'][0]['key']}", b"")[0] == 200
        require_vector(endpoint.invoke("model.tar").vectors[0], new)


def _upload_packed(client: Any, checkpoint: Path) -> None:
    pack(checkpoint, checkpoint.with_suffix(".tar"))
    client.put_object(Bucket=BUCKET, Key="model.tar", Body=checkpoint.with_suffix(".tar").read_bytes())
