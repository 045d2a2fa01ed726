"""A server that asks who calls: boto3, the AWS CLI, our own commands and plain HTTP, with keys that may everything, something, nothing."""

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest
import trustme
from botocore.config import Config
from botocore.exceptions import ClientError

from flatshare.bench.server import RunningServer
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.access import AccessKey, Grant
from flatshare.security.keys import KeyFile
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import Failure, clean_environment, failure_of, serving, until
from tests.wire.requests import signed

pytestmark = pytest.mark.slow
MINE, THEIRS = TENANTS[0], TENANTS[1]
BODY = b'{"inputs": "hello"}'
SYNC = Config(retries={"max_attempts": 0})


@dataclass(frozen=True, slots=True)
class House:
    """A server with --auth, its key file, and two keys."""

    server: RunningServer
    data: Path
    operator: AccessKey
    tenant: AccessKey

    @property
    def keys(self) -> KeyFile:
        return KeyFile(self.data / "keys.json")

    def client(self, service: str, key: AccessKey, *, secret: str | None = None, region: str = "us-east-1", **more: Any) -> Any:
        return boto3.client(
            service, endpoint_url=self.server.url, region_name=region, config=SYNC,
            aws_access_key_id=key.principal.key_id, aws_secret_access_key=secret or key.secret, **more,
        )  # fmt: skip

    def invoke(self, key: AccessKey, target: str = MINE, **client: Any) -> Any:
        runtime = self.client("sagemaker-runtime", key, **client)
        return runtime.invoke_endpoint(EndpointName="embeddings", TargetModel=target, ContentType="application/json", Body=BODY)

    def plain(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> "Plain":
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        got = Plain(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return got

    def sent(self, key: AccessKey, method: str, path: str, body: bytes = b"", **headers: str) -> "Plain":
        request = signed(method, path, body, key=(key.principal.key_id, key.secret), **headers)  # type: ignore[arg-type]  # headers only
        return self.plain(method, path, {name.decode(): value.decode() for name, value in request.headers.items()}, body)

    def audit(self, series: str) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (self.data / f"audit/{series}.jsonl").read_bytes().splitlines()]

    def flatshare(self, key: AccessKey | None, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        more = {
            "AWS_EC2_METADATA_DISABLED": "true",
            "FLATSHARE_URL": self.server.url,
            "HOME": str(self.data),
            "COLUMNS": "200",
        } | environment
        if key is not None:
            more |= {"AWS_ACCESS_KEY_ID": key.principal.key_id, "AWS_SECRET_ACCESS_KEY": key.secret}
        command = [sys.executable, "-m", "flatshare", *arguments]
        return subprocess.run(command, env=clean_environment(more), capture_output=True, text=True, check=False, timeout=60, cwd=self.data)


@dataclass(frozen=True, slots=True)
class Plain:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.headers.get("x-amzn-errortype", "")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Iterator[House]:
    data = tmp_path_factory.mktemp("secured")
    file = KeyFile(data / "keys.json")
    operator = file.create("operator", (Grant(("*",)),), 0)
    grant = Grant(("sagemaker:InvokeEndpoint",), ("embeddings",), (f"{MINE.partition('/')[0]}/*",))
    tenant = file.create("tenant-0", (grant,), 0)
    with serving(data, options=("--auth", "sigv4")) as server:
        built = House(server, data, operator, tenant)
        ensure_endpoint(built.client("sagemaker", operator), EndpointPlan("embeddings", f"file://{checkpoints}/"))
        yield built


def test_a_key_that_may_everything_deploys_and_calls(house: House) -> None:
    assert house.invoke(house.operator)["Body"].read()
    sagemaker = house.client("sagemaker", house.operator)
    assert [e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"]] == ["embeddings"]


def test_a_key_that_calls_too_often_is_throttled_on_every_road(house: House) -> None:
    slow = house.keys.create("slow", (Grant(("*",)),), 0, rate_rps=0.001)
    until(lambda: _list_status(house, slow) != "UnrecognizedClientException")  # which took its one call
    assert _list_status(house, slow) == "ThrottlingException"
    bearer = {"Authorization": f"Bearer {slow.principal.key_id}.{slow.secret}"}
    assert [house.plain("GET", path, bearer).status for path in ("/metrics", "/v2/models/embeddings/ready")] == [429, 429]
    assert failure_of(partial(house.invoke, slow)).code == "ThrottlingException"
    assert house.invoke(house.tenant, MINE)["Body"].read()


def _list_status(house: House, key: AccessKey) -> str:
    try:
        house.client("sagemaker", key).list_models()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "ok"


def test_a_tenants_key_reaches_its_models_and_no_others(house: House) -> None:
    assert house.invoke(house.tenant, MINE)["Body"].read()
    for target in (THEIRS, "nobody/at-all", "", f"x/{MINE}"):
        failure = failure_of(partial(house.invoke, house.tenant, target) if target else partial(_without_target, house))
        assert (failure.code, failure.status) == ("AccessDeniedException", 403)
        assert failure.message.startswith(
            "User: arn:aws:iam::000000000000:user/tenant-0 is not authorized to perform: sagemaker:InvokeEndpoint on resource: "
            "arn:aws:sagemaker:us-east-1:000000000000:endpoint/embeddings"
        )


def _without_target(house: House) -> Any:
    runtime = house.client("sagemaker-runtime", house.tenant)
    return runtime.invoke_endpoint(EndpointName="embeddings", ContentType="application/json", Body=BODY)


@pytest.mark.parametrize("target", [f"{MINE.partition('/')[0]}/../{THEIRS}", f"{MINE.partition('/')[0]}/%2e%2e/{THEIRS}"])
def test_a_tenant_does_not_climb_out_of_its_grant(house: House, target: str) -> None:
    failure = failure_of(lambda: house.invoke(house.tenant, target))
    assert (failure.code, failure.status) == ("ValidationError", 400)


def test_a_denial_tells_nothing_of_what_exists(house: House) -> None:
    """The same answer for an endpoint that is there and for one that is not."""
    runtime = house.client("sagemaker-runtime", house.tenant)
    say = [
        failure_of(partial(runtime.invoke_endpoint, EndpointName=name, TargetModel=THEIRS, Body=b"x")).message.replace(name, "NAME")
        for name in ("embeddings", "nobody")
    ]
    assert say[0].partition(" because ")[0] == say[1].partition(" because ")[0]


CONTROL: dict[str, Callable[[Any], object]] = {
    "CreateModel": lambda client: client.create_model(
        ModelName="x", PrimaryContainer={"Image": "i", "Mode": "MultiModel", "ModelDataUrl": "s3://b/p/"}, ExecutionRoleArn="a" * 20
    ),
    "DeleteEndpoint": lambda client: client.delete_endpoint(EndpointName="embeddings"),
    "DescribeEndpoint": lambda client: client.describe_endpoint(EndpointName="embeddings"),
    "ListModels": lambda client: client.list_models(),
}


@pytest.mark.parametrize("operation", CONTROL)
def test_a_tenants_key_has_no_part_in_the_control_plane(house: House, operation: str) -> None:
    failure = failure_of(lambda: CONTROL[operation](house.client("sagemaker", house.tenant)))
    assert (failure.code, failure.status) == ("AccessDeniedException", 403)
    assert f"perform: sagemaker:{operation} on resource: " in failure.message


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda h: replace(h.tenant, principal=replace(h.tenant.principal, key_id="FSKANOBODYNOBODY0000")), "UnrecognizedClientException"),
        (lambda h: replace(h.tenant, secret="x" * 40), "SignatureDoesNotMatch"),
    ],
)
@pytest.mark.parametrize("service", ["sagemaker", "sagemaker-runtime"])
def test_a_false_key_is_refused_on_both_of_aws_s_roads(house: House, make: Callable[[House], AccessKey], code: str, service: str) -> None:
    key = make(house)
    calls: dict[str, Callable[[], object]] = {
        "sagemaker": lambda: house.client("sagemaker", key).list_models(),
        "sagemaker-runtime": lambda: house.invoke(key),
    }
    failure: Failure = failure_of(calls[service])
    assert (failure.code, failure.status) == (code, 403)


def test_a_signature_for_another_region_is_refused_with_the_right_one(house: House) -> None:
    failure = failure_of(lambda: house.invoke(house.tenant, region="eu-west-1"))
    assert failure.code == "SignatureDoesNotMatch"
    assert "'us-east-1'" in failure.message


def test_an_unsigned_call_is_refused_on_every_road_but_ping(house: House) -> None:
    headers = {"X-Amzn-SageMaker-Target-Model": MINE, "X-Amz-Target": "SageMaker.ListModels"}
    for method, path in (("POST", "/"), ("POST", "/endpoints/embeddings/invocations"), ("GET", "/metrics"), ("GET", "/flatshare/status")):
        answer = house.plain(method, path, headers)
        assert (answer.status, answer.code) == (403, "MissingAuthenticationToken"), path
    assert house.plain("GET", "/ping", {}).status == 200


def test_the_pages_of_the_server_take_a_token_or_a_signature_of_who_may_see_them(house: House) -> None:
    metrics = house.keys.create("prometheus", (Grant(("flatshare:GetMetrics",)),), 0)
    house.sent(house.operator, "GET", "/ping")
    token = {"Authorization": f"Bearer {metrics.principal.key_id}.{metrics.secret}"}
    until(lambda: house.plain("GET", "/metrics", token).status == 200)
    assert house.plain("GET", "/flatshare/status", token).code == "AccessDeniedException"
    assert house.sent(house.operator, "GET", "/flatshare/status").status == 200
    assert house.sent(house.tenant, "GET", "/metrics").code == "AccessDeniedException"
    bearer = {"Authorization": f"Bearer {house.tenant.principal.key_id}.{house.tenant.secret}"}
    assert house.plain("POST", "/endpoints/embeddings/invocations", bearer).code == "IncompleteSignature"
    house.keys.revoke(metrics.principal.key_id)


def test_keys_come_and_go_while_the_server_runs(house: House) -> None:
    made = orjson.loads(
        house.flatshare(None, "keys", "create", "passing", "--target-model", MINE, "--data", str(house.data), "--json").stdout
    )
    key = house.keys.read()[made["id"]]
    assert key.secret == made["secret"]

    def is_served() -> bool:
        try:
            house.invoke(key)
        except ClientError as error:
            if error.response["Error"]["Code"] != "UnrecognizedClientException":
                raise
            return False
        return True

    until(is_served)
    assert house.flatshare(None, "keys", "revoke", made["id"], "--data", str(house.data)).returncode == 0
    until(lambda: not is_served())


def test_our_own_commands_work_with_the_usual_credentials_and_say_what_is_missing(house: House) -> None:
    done = house.flatshare(house.tenant, "invoke", "embeddings", MINE, "hello", "--json")
    assert done.returncode == 0, done.stderr
    assert "embeddings" in orjson.loads(done.stdout)
    assert "embeddings" in house.flatshare(house.operator, "top", "--once").stdout
    for key, words in ((None, "flatshare keys create"), (house.tenant, "not authorized to perform: flatshare:GetStatus")):
        refused = house.flatshare(key, "top", "--once")
        assert refused.returncode == 1
        assert words in " ".join(refused.stderr.split())
    refused = house.flatshare(None, "invoke", "embeddings", MINE, "hello")
    assert refused.returncode == 1
    assert "flatshare keys create" in " ".join(refused.stderr.split())


def test_the_aws_cli_calls_with_a_key(house: House, tmp_path: Path) -> None:
    environment = clean_environment({
        "AWS_ACCESS_KEY_ID": house.tenant.principal.key_id, "AWS_SECRET_ACCESS_KEY": house.tenant.secret, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": house.server.url,
    })  # fmt: skip
    (tmp_path / "in").write_bytes(BODY)
    command = [str(Path(sys.executable).with_name("aws")), "sagemaker-runtime", "invoke-endpoint", "--endpoint-name", "embeddings"]
    command += ["--target-model", MINE, "--content-type", "application/json", "--body", f"fileb://{tmp_path / 'in'}", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "embeddings" in orjson.loads((tmp_path / "out").read_bytes())


def test_a_recorded_control_call_is_of_no_use_to_whoever_sends_it_again_later(house: House) -> None:
    tags = orjson.dumps(
        {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:endpoint/embeddings", "Tags": [{"Key": "a", "Value": "b"}]}
    )
    request = signed(
        "POST", "/", tags, key=(house.operator.principal.key_id, house.operator.secret), X_Amz_Target="SageMaker.AddTags",
        Content_Type="application/x-amz-json-1.1",
    )  # fmt: skip
    headers = {name.decode(): value.decode() for name, value in request.headers.items()}
    assert house.plain("POST", "/", headers, tags).status == 200
    deadline_s = time.monotonic() + 20
    while (again := house.plain("POST", "/", headers, tags)).status == 200:
        assert time.monotonic() < deadline_s
    assert again.code == "RequestExpired"
    assert b"received before" in again.body


def test_every_change_and_every_denial_is_written_down(house: House) -> None:
    sagemaker = house.client("sagemaker", house.operator)
    arn = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/embeddings"
    changed = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "k", "Value": "v"}])["ResponseMetadata"]
    failed = failure_of(lambda: sagemaker.delete_model(ModelName="nobody")).body["ResponseMetadata"]
    denied = failure_of(lambda: house.invoke(house.tenant, THEIRS)).body["ResponseMetadata"]
    by_id = {line["request_id"]: line for series in ("changes", "denials") for line in house.audit(series)}
    one = by_id[changed["RequestId"]]
    assert (one["who"], one["action"], one["resources"], one["result"]) == ("operator", "sagemaker:AddTags", ["endpoint/embeddings"], "200")
    assert (one["key"], one["source"]) == (house.operator.principal.key_id, "127.0.0.1")
    assert by_id[failed["RequestId"]]["result"] == "400 ValidationException"
    denial = by_id[denied["RequestId"]]
    assert (denial["who"], denial["target_model"], denial["result"]) == ("tenant-0", THEIRS, "403 AccessDeniedException")
    assert house.tenant.secret not in (house.data / "audit/denials.jsonl").read_text()


def test_denials_are_counted(house: House) -> None:
    failure_of(lambda: house.invoke(house.tenant, THEIRS))
    text = house.sent(house.operator, "GET", "/metrics").body.decode()
    assert 'flatshare_denials_total{code="AccessDeniedException"}' in text


def test_every_answer_has_an_id_and_the_instance_logs_by_it(house: House) -> None:
    answers = [
        house.plain("GET", "/ping", {}),
        house.plain("GET", "/nowhere", {}),
        house.plain("GET", "/metrics", {}),
        house.plain("POST", "/", {}),
        house.sent(house.operator, "GET", "/metrics"),
        house.sent(house.operator, "GET", "/flatshare/status"),
    ]
    ids = [answer.headers["x-amzn-requestid"] for answer in answers]
    assert len(set(ids)) == len(ids)
    failure = failure_of(lambda: house.invoke(house.operator, "nobody/here"))
    request_id = failure.body["ResponseMetadata"]["RequestId"]
    [log] = [path.read_text() for path in (house.data / "log").glob("i-*.log")]
    [line] = [line for line in log.splitlines() if "nobody/here" in line]
    assert request_id in line


@pytest.mark.parametrize("auth", ["sigv4", "bearer"])
def test_over_tls_with_a_certificate_of_ones_own(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, auth: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    key = KeyFile(tmp_path / "data/keys.json").create("operator", (Grant(("*",)),), 0)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    tls = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with serving(tmp_path / "data", options=("--auth", auth, *tls)) as server:
        house = House(server, tmp_path / "data", key, key)
        assert server.url.startswith("https://")
        ensure_endpoint(house.client("sagemaker", key), EndpointPlan("embeddings", f"file://{checkpoints}/"))
        assert house.invoke(key)["Body"].read()
        assert "CERTIFICATE_VERIFY_FAILED" in house.flatshare(key, "top", "--once").stderr
        assert house.flatshare(key, "top", "--once", AWS_CA_BUNDLE=str(tmp_path / "ca.pem")).returncode == 0


def test_a_server_beyond_this_machine_starts_with_authentication_only(tmp_path: Path) -> None:
    refused = [sys.executable, "-m", "flatshare", "serve", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(refused, capture_output=True, text=True, check=False, timeout=30, env=clean_environment())
    assert done.returncode == 2
    assert "--auth sigv4" in " ".join(done.stderr.split())
    with serving(tmp_path, options=("--auth", "sigv4", "--host", "0.0.0.0")):
        said = (tmp_path / "server.log").read_text()
        assert "travel readable" in " ".join(said.split())
        assert "no_access_keys" in said
