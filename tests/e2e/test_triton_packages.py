"""A Triton package behind a real server: versions, custom attributes, streams, metrics; over SageMaker's API and Open Inference."""

import urllib.request
from http.client import HTTPConnection
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from flatshare.bench.server import RunningServer
from flatshare.client.stream import invoke_with_response_stream
from tests.checkpoints import write_checkpoint
from tests.contract.packages import COUNTER, COUNTER_CONFIG, config, write_model
from tests.e2e.servers import Endpoint, deploy

pytestmark = pytest.mark.slow
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
TIMES = """
    import json
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.version = int(args["model_version"])
            family = pb_utils.MetricFamily(name="shop_answers", description="Answers", kind=pb_utils.MetricFamily.COUNTER)
            self.answers = family.Metric(labels={"kind": "times"})
            values = pb_utils.MetricFamily(name="shop_values", description="Values", kind=pb_utils.MetricFamily.HISTOGRAM)
            self.values = values.Metric(labels={"kind": "times"}, buckets=[1.0, 5.0])

        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            self.answers.increment(1)
            values = request.inputs()[0].as_numpy() * self.version
            self.values.observe(float(values[0, 0]))
            said = json.loads(request.parameters()).get("X-Amzn-SageMaker-Custom-Attributes")
            parameters = {"X-Amzn-SageMaker-Custom-Attributes": f"heard {said}"} if said else {}
            return pb_utils.InferenceResponse([pb_utils.Tensor("B", values)], parameters=parameters)
"""


@pytest.fixture(scope="module")
def shop(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    folder = tmp_path_factory.mktemp("shop")
    policy = config(more='backend: "python" max_batch_size: 4 version_policy { specific { versions: [1, 3] } }')
    write_model(folder / "times", TIMES, policy)
    for version in (2, 3):
        place = folder / "times/times" / str(version)
        place.mkdir()
        (place / "model.py").write_bytes((folder / "times/times/1/model.py").read_bytes())
    write_model(folder / "counter", COUNTER, COUNTER_CONFIG)
    write_checkpoint(folder / "encoder" / "encoder" / "1")
    (folder / "encoder" / "encoder" / "config.pbtxt").write_text('backend: "mapped" max_batch_size: 4')
    write_checkpoint(folder / "alone")
    return deploy(server, "shop", folder)


def invoke(endpoint: Endpoint, target: str, inputs: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    answer: dict[str, Any] = endpoint.server.runtime.invoke_endpoint(
        EndpointName=endpoint.name, TargetModel=target, ContentType="application/json", Body=orjson.dumps({"inputs": inputs}), **more
    )
    return answer


def tensor(name: str, datatype: str, *values: float) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [1, len(values)] if name == "A" else [len(values)], "data": values}


def test_an_answer_says_which_version_gave_it_and_others_can_be_asked(shop: Endpoint) -> None:
    latest = orjson.loads(invoke(shop, "times", [tensor("A", "FP32", 2)])["Body"].read())
    assert (latest["model_version"], latest["outputs"][0]["data"]) == ("3", [6])
    with triton_http.InferenceServerClient(shop.server.url.removeprefix("http://")) as client:
        assert client.get_model_metadata("shop/times")["versions"] == ["1", "3"]
        asked = triton_http.InferInput("A", [1, 1], "FP32")
        asked.set_data_from_numpy(np.array([[2]], np.float32))
        first = client.infer("shop/times", [asked], model_version="1")
        assert (first.get_response()["model_version"], first.as_numpy("B").tolist()) == ("1", [[2]])
        assert client.is_model_ready("shop/times", "3")
        assert not client.is_model_ready("shop/times", "2")
        with pytest.raises(InferenceServerException, match="no version '2': it has 1, 3") as failure:
            client.infer("shop/times", [asked], model_version="2")
    assert failure.value.status() == "404"


def test_the_index_and_the_statistics_name_the_versions_and_the_config_says_which_and_how_often_they_answer(shop: Endpoint) -> None:
    with triton_http.InferenceServerClient(shop.server.url.removeprefix("http://")) as client:
        asked = triton_http.InferInput("A", [1, 1], "FP32")
        asked.set_data_from_numpy(np.array([[2]], np.float32))
        before = answered(client, "shop/times")
        for version in ("1", "3", ""):
            client.infer("shop/times", [asked], model_version=version)
        gained = {version: count - before.get(version, 0) for version, count in answered(client, "shop/times").items()}
        assert gained == {"1": 1, "3": 2}
        assert list(answered(client, "shop/times", "3")) == ["3"]
        ready = {(each["name"], each["version"]) for each in client.get_model_repository_index() if each["state"] == "READY"}
        assert {("shop/times", "1"), ("shop/times", "3")} <= ready
        assert ("shop/times", "2") not in ready
        assert client.get_model_config("shop/times")["version_policy"] == {"specific": {"versions": [1, 3]}}
        decoupled = {name: client.get_model_config(f"shop/{name}")["model_transaction_policy"] for name in ("times", "counter")}
        assert decoupled == {"times": {"decoupled": False}, "counter": {"decoupled": True}}


def answered(client: Any, name: str, version: str = "") -> dict[str, int]:
    """How many inferences of each version."""
    found = client.get_inference_statistics(name, version)["model_stats"]
    return {each["version"]: each["inference_count"] for each in found}


def test_a_checkpoint_in_a_package_answers_as_it_does_alone(shop: Endpoint) -> None:
    texts = ["the order has not arrived", "help me"]
    asked = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": texts}
    found = orjson.loads(invoke(shop, "encoder", [asked], CustomAttributes="trace=7")["Body"].read())["outputs"]
    alone = orjson.loads(invoke(shop, "alone", [asked | {"shape": [2]}])["Body"].read())["outputs"]
    assert found == alone
    assert found[0]["shape"] == [2, 32]


def test_custom_attributes_reach_the_model_and_its_own_come_back(shop: Endpoint) -> None:
    told = invoke(shop, "times", [tensor("A", "FP32", 1)], CustomAttributes="trace=7")
    assert told["CustomAttributes"] == "heard trace=7"
    assert ATTRIBUTES not in orjson.loads(told["Body"].read())["parameters"]
    assert "CustomAttributes" not in invoke(shop, "times", [tensor("A", "FP32", 1)])


def test_boto3_reads_the_answers_of_a_decoupled_model_as_they_come(shop: Endpoint) -> None:
    body = orjson.dumps({"inputs": [tensor("count", "INT32", 3)], "outputs": [{"name": "number"}]})
    lines = b"".join(invoke_with_response_stream(shop.server.runtime, "shop", "counter", body)).splitlines()
    found = [orjson.loads(line) for line in lines]
    assert [answer["outputs"][0]["data"] for answer in found] == [[0], [1], [2]]
    assert [answer["parameters"]["triton_final_response"] for answer in found] == [False] * 3


def test_server_sent_events_bring_them_too_and_a_plain_call_takes_exactly_one(shop: Endpoint) -> None:
    connection = HTTPConnection(shop.server.url.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "X-Amzn-SageMaker-Target-Model": "counter"}
    body = orjson.dumps({"inputs": [tensor("count", "INT32", -1)], "outputs": [{"name": "number"}]})
    connection.request("POST", "/endpoints/shop/invocations", body, headers)
    events = [orjson.loads(event.removeprefix(b"data: ")) for event in connection.getresponse().read().split(b"\n\n") if event]
    connection.close()
    assert events[0]["outputs"][0]["data"] == [0]
    assert "below zero" in events[1]["error"]
    failure = shop.failure(TargetModel="counter", Body=orjson.dumps({"inputs": [tensor("count", "INT32", 2)]}))
    assert failure.code == "ModelError"
    assert "answered 2 times" in failure.message


def test_what_models_count_stands_among_the_metrics(shop: Endpoint) -> None:
    invoke(shop, "times", [tensor("A", "FP32", 1)])
    with urllib.request.urlopen(f"{shop.server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith("shop_answers_total")]
    assert 'kind="times"' in line
    assert 'endpoint="shop"' in line
    assert float(line.rpartition(" ")[2]) >= 1
    buckets = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("shop_values_bucket")]
    assert len(buckets) == 3
    assert buckets == sorted(buckets)
    assert buckets[-1] >= 1
