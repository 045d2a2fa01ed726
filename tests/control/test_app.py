import http.client
import json
from typing import Any
from urllib.parse import urlparse

import boto3
import pytest
from botocore.exceptions import ClientError

from flatshare.control.app import OPERATIONS
from flatshare.wire.http import TOO_LARGE, Request

from .calls import call
from .conftest import House, Server

CONTRACT = {
    *("CreateModel", "DescribeModel", "ListModels", "DeleteModel"),
    *("CreateEndpointConfig", "DescribeEndpointConfig", "ListEndpointConfigs", "DeleteEndpointConfig"),
    *("CreateEndpoint", "DescribeEndpoint", "ListEndpoints", "DeleteEndpoint"),
    *("UpdateEndpoint", "UpdateEndpointWeightsAndCapacities", "AddTags", "ListTags", "DeleteTags"),
}


def post(server: Server, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(urlparse(server.url).netloc)
    connection.request("POST", "/", body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, dict(response.getheaders()), answer


def test_every_operation_of_the_contract_is_served() -> None:
    assert set(OPERATIONS) == CONTRACT


def test_another_operation_of_sagemaker_is_unknown(sagemaker: Any) -> None:
    with pytest.raises(ClientError) as refused:
        sagemaker.list_training_jobs()
    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_another_service_is_answered_in_json(server: Server) -> None:
    client = boto3.client("dynamodb", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    with pytest.raises(ClientError) as refused:
        client.list_tables()
    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"


def test_a_service_that_is_not_served_yet_is_answered_in_its_own_protocol(server: Server) -> None:
    client = boto3.client("cloudwatch", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    with pytest.raises(ClientError) as refused:
        client.list_metrics()
    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    connection = http.client.HTTPConnection(urlparse(server.url).netloc)
    form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    connection.request("POST", "/", b"Action=ListMetrics&Version=2010-08-01", form)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert (response.status, response.headers["content-type"]) == (400, "text/xml")
    assert b"<Code>InvalidAction</Code>" in body


def test_a_body_that_is_not_json_is_a_serialization_exception(server: Server) -> None:
    status, headers, body = post(server, {"X-Amz-Target": "SageMaker.ListModels"}, b"{")
    assert status == 400
    assert body["__type"] == "SerializationException"
    assert headers["x-amzn-errortype"] == "SerializationException"
    assert headers["content-type"] == "application/x-amz-json-1.1"
    assert headers["x-amzn-requestid"]


def test_a_call_without_a_target_is_unknown(server: Server) -> None:
    status, _, body = post(server, {}, b"{}")
    assert (status, body["__type"]) == (400, "UnknownOperationException")


def test_every_reply_has_a_request_id(sagemaker: Any) -> None:
    assert sagemaker.list_models()["ResponseMetadata"]["RequestId"]


async def test_a_body_that_was_too_large_is_refused(house: House) -> None:
    reply = await house.control.handle(Request("POST", "/", {TOO_LARGE: b"1", b"x-amz-target": b"SageMaker.ListModels"}))
    assert (reply.status, b"too large" in reply.body) == (400, True)


async def test_a_fault_of_ours_is_told_without_its_inside(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError("secret")

    monkeypatch.setitem(OPERATIONS, "ListModels", fail)
    reply = await house.control.handle(Request("POST", "/", {b"x-amz-target": b"SageMaker.ListModels"}, b"{}"))
    assert reply.status == 500
    assert json.loads(reply.body)["__type"] == "InternalFailure"
    assert b"secret" not in reply.body


async def test_a_failed_operation_leaves_nothing_behind(house: House) -> None:
    body = json.dumps({"ModelName": "m", "PrimaryContainer": {"Mode": "MultiModel"}}).encode()
    reply = await house.control.handle(Request("POST", "/", {b"x-amz-target": b"SageMaker.CreateModel"}, body))
    assert reply.status == 400
    assert await call(house.control, "ListModels") == {"Models": []}
