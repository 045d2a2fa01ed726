"""A server that asks who calls runs no code that its operator has not published, whichever way it is asked to."""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from flatshare.bench.server import PlainCaller, RunningServer
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.access import AccessKey, Grant
from flatshare.core.ids import ArtifactUri, model_key
from flatshare.security.keys import KeyFile
from tests.contract.packages import write_model
from tests.e2e.servers import clean_environment, serving

pytestmark = pytest.mark.slow
BODY = orjson.dumps({"inputs": [{"name": "A", "datatype": "FP32", "shape": [1, 1], "data": [21]}]})


@dataclass(frozen=True, slots=True)
class House:
    server: RunningServer
    data: Path
    models: Path
    key: AccessKey

    def client(self, service: str) -> Any:
        return boto3.client(
            service, endpoint_url=self.server.url, region_name="us-east-1", config=Config(retries={"max_attempts": 0}),
            aws_access_key_id=self.key.principal.key_id, aws_secret_access_key=self.key.secret,
        )  # fmt: skip

    def invoke(self, target: str) -> list[float]:
        runtime = self.client("sagemaker-runtime")
        reply = runtime.invoke_endpoint(EndpointName="e", TargetModel=target, ContentType="application/json", Body=BODY)
        answer: list[float] = orjson.loads(reply["Body"].read())["outputs"][0]["data"]
        return answer

    def v2(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request(method, path, body, {"Authorization": f"Bearer {self.key.principal.key_id}.{self.key.secret}"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def code(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        whole = [sys.executable, "-m", "flatshare", "code", *arguments, "--data", str(self.data)]
        return subprocess.run(whole, env=clean_environment(), capture_output=True, text=True, check=True, timeout=60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    data, models = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        write_model(models / name)
        (models / name / name / "1" / "weights.txt").write_text(name)
    key = KeyFile(data / "keys.json").create("operator", (Grant(("*",)),), 0)
    with serving(data, options=("--auth", "sigv4")) as server:
        built = House(server, data, models, key)
        ensure_endpoint(built.client("sagemaker"), EndpointPlan("e", f"file://{models}/"))
        yield built


def test_every_road_refuses_with_the_digest_and_one_command_opens_all_of_them(house: House) -> None:
    with pytest.raises(ClientError) as by_sagemaker:
        house.invoke("first")
    response: Any = by_sagemaker.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelError", 424)
    sentence = response["Error"]["Message"]
    digest = sentence.partition("flatshare code publish ")[2][:64]
    assert len(digest) == 64
    assert f"model 'first' brings code with the digest {digest}" in sentence
    status, body = house.v2("POST", "/v2/repository/models/e%2Ffirst/load")
    assert (status, f"flatshare code publish {digest}" in body) == (400, True)
    status, body = house.v2("POST", "/v2/models/e%2Ffirst/infer", BODY)
    assert (status, f"flatshare code publish {digest}" in body) == (400, True)
    status, body = _by_container_contract(house, "first")
    assert (status, f"flatshare code publish {digest}" in body) == (400, True)

    house.code("publish", str(house.models / "second"))  # the same code with other weights
    assert house.invoke("first") == house.invoke("second") == [42.0]
    assert house.v2("POST", "/v2/repository/models/e%2Ffirst/load")[0] == 200
    house.code("revoke", digest)
    while house.v2("POST", "/v2/models/e%2Ffirst/infer", BODY)[0] == 200:
        pass  # within a second
    with pytest.raises(ClientError, match="flatshare code publish"):
        house.invoke("second")


def _by_container_contract(house: House, name: str) -> tuple[int, str]:
    """At the instance's own door, as the gateway drives it."""
    status, body = house.v2("GET", "/flatshare/status")
    assert status == 200
    uri = f"file://{house.models}/{name}"
    load = {"model_name": model_key(ArtifactUri(uri)), "url": uri}
    with PlainCaller.to_socket(orjson.loads(body)["instances"][0]["socket"]) as caller:
        status, answer = caller.request("POST", "/models", orjson.dumps(load))
    return status, answer.decode()


def test_without_authentication_a_server_warns_that_any_code_runs_unless_it_is_told_not_to(tmp_path: Path) -> None:
    insists = ("--auth", "sigv4", "--model-code", "any")
    for options, warns in ((("--auth", "none"), True), (("--model-code", "published"), False), (insists, True)):
        data = tmp_path / "-".join(options).strip("-")
        with serving(data, options=options):
            pass
        said = (data / "server.log").read_text()
        assert ("may run Python code here" in said) is warns, options
