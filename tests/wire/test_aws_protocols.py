"""Every protocol against botocore's own client side: what its serializers write is read, what is written its parsers read."""

import contextlib
import gzip
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import prepare_request_dict
from botocore.model import OperationModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given, settings
from hypothesis import strategies as st

from flatshare.core.errors import BadInput, UnknownOperation, ValidationFailed
from flatshare.wire import cbor
from flatshare.wire.aws_codec import Codec
from flatshare.wire.aws_json import load_service, sagemaker_codec
from flatshare.wire.aws_services import codec_of
from flatshare.wire.http import Reply, Request

ROADS = [
    ("application-autoscaling", "json"),
    ("cloudwatch", "json"),
    ("cloudwatch", "query"),
    ("cloudwatch", "smithy-rpc-v2-cbor"),
]
MOMENT = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
METRIC = {
    "MetricName": "Invocations",
    "Dimensions": [{"Name": "EndpointName", "Value": "e"}, {"Name": "VariantName", "Value": "a b&c=<d>"}],
    "Timestamp": MOMENT,
    "Value": 0.1,
    "Unit": "Count",
    "StorageResolution": 60,
}
STATISTICS = {
    "Namespace": "AWS/SageMaker",
    "MetricName": "Invocations",
    "StartTime": MOMENT,
    "EndTime": MOMENT,
    "Period": 60,
    "Statistics": ["Sum", "Average"],
}
DATAPOINTS = {"Label": "Invocations", "Datapoints": [{"Timestamp": MOMENT, "Sum": 12.0, "Unit": "None"}, {"Timestamp": MOMENT, "Sum": 0.5}]}
POLICY = {
    "PolicyName": "p",
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/e/variant/v",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    "PolicyType": "TargetTrackingScaling",
    "TargetTrackingScalingPolicyConfiguration": {"TargetValue": 70.5, "ScaleInCooldown": 60, "DisableScaleIn": False},
}


def sent(service: str, protocol: str, operation: str, params: dict[str, Any]) -> Request:
    """The request that boto3 would send."""
    model = load_service(service).operation_model(operation)
    serialized = create_serializer(protocol, include_validation=False).serialize_to_request(params, model)
    prepare_request_dict(serialized, endpoint_url="http://localhost", context={"signing": {}})
    body = serialized["body"]
    if isinstance(body, dict):
        prepared = botocore.awsrequest.AWSRequest(method="POST", url="http://localhost/", data=body).prepare()
        body = prepared.body
    body = body.encode() if isinstance(body, str) else bytes(body)
    headers = {name.lower().encode(): str(value).encode() for name, value in serialized["headers"].items()}
    return Request(serialized["method"], serialized["url_path"], headers, body)


def received(service: str, protocol: str, operation: str, reply: Reply) -> dict[str, Any]:
    """What boto3 makes of the reply."""
    shape: Any = load_service(service).operation_model(operation).output_shape
    headers = {name.decode(): value.decode() for name, value in reply.headers} | {"content-type": reply.content_type.decode()}
    parsed: dict[str, Any] = create_parser(protocol).parse({"status_code": reply.status, "headers": headers, "body": reply.body}, shape)
    return parsed


def as_seconds(value: Any) -> Any:
    """The value with moments as the codec has them."""
    match value:
        case datetime():
            return value.timestamp()
        case dict():
            return {key: as_seconds(item) for key, item in value.items()}
        case list():
            return [as_seconds(item) for item in value]
    return value


def codec(service: str, protocol: str) -> Codec:
    operation = "PutScalingPolicy" if service == "application-autoscaling" else "GetMetricStatistics"
    return codec_of(sent(service, protocol, operation, {}))


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
@pytest.mark.parametrize(
    ("operation", "params"),
    [("PutMetricData", {"Namespace": "N", "MetricData": [METRIC, METRIC]}), ("GetMetricStatistics", STATISTICS), ("ListMetrics", {})],
)
def test_cloudwatch_calls_arrive_as_boto3_sends_them(protocol: str, operation: str, params: dict[str, Any]) -> None:
    request = sent("cloudwatch", protocol, operation, params)
    call = codec_of(request).call(request, served=[operation])
    assert (call.operation, call.params) == (operation, as_seconds(params))


def test_autoscaling_calls_arrive_as_boto3_sends_them() -> None:
    request = sent("application-autoscaling", "json", "PutScalingPolicy", POLICY)
    assert codec_of(request).call(request, served=["PutScalingPolicy"]).params == POLICY


def test_a_compressed_body_is_read_and_one_that_swells_is_not() -> None:
    request = sent("cloudwatch", "json", "PutMetricData", {"Namespace": "N", "MetricData": [METRIC] * 100})
    request.headers[b"content-encoding"] = b"gzip"
    request.body = gzip.compress(request.body)
    assert len(codec_of(request).call(request, served=["PutMetricData"]).params["MetricData"]) == 100
    for body, sentence in ((gzip.compress(b" " * (9 << 20)), "when decompressed"), (request.body[:-9], "cut off"), (b"xxxx", "not gzip")):
        request.body = body
        with pytest.raises(BadInput, match=sentence):
            codec_of(request).call(request, served=["PutMetricData"])
    request.headers[b"content-encoding"] = b"br"
    with pytest.raises(BadInput, match="send it plain or as gzip"):
        codec_of(request).call(request, served=["PutMetricData"])


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
def test_cloudwatch_answers_are_read_by_boto3(protocol: str) -> None:
    reply = codec("cloudwatch", protocol).reply("GetMetricStatistics", as_seconds(DATAPOINTS), request_id="r-1")
    parsed = received("cloudwatch", protocol, "GetMetricStatistics", reply)
    assert parsed.pop("ResponseMetadata")["RequestId"] == "r-1"
    assert parsed == DATAPOINTS


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
@pytest.mark.parametrize(
    ("code", "status", "seen"),
    [
        ("InvalidParameterValueException", 400, "InvalidParameterValue"),
        ("InternalServiceFault", 500, "InternalServiceError"),
        ("AccessDeniedException", 403, "AccessDeniedException"),
    ],
)
def test_cloudwatch_errors_have_the_codes_that_old_clients_catch(protocol: str, code: str, status: int, seen: str) -> None:
    reply = codec("cloudwatch", protocol).error(status, code, "because <of> that", request_id="r-1")
    parsed = received("cloudwatch", protocol, "PutMetricData", reply)
    assert reply.status == status
    assert (parsed["Error"]["Code"], parsed["Error"]["Message"]) == (seen, "because <of> that")
    assert parsed["Error"].get("Type", "Sender" if status < 500 else "Receiver") == ("Sender" if status < 500 else "Receiver")


def test_autoscaling_errors_have_their_own_codes() -> None:
    reply = codec("application-autoscaling", "json").error(400, "ObjectNotFoundException", "No scalable target", request_id="r")
    assert received("application-autoscaling", "json", "PutScalingPolicy", reply)["Error"]["Code"] == "ObjectNotFoundException"
    assert b"x-amzn-query-error" not in dict(reply.headers)


@pytest.mark.parametrize(
    "request_",
    [
        Request("POST", "/", {b"x-amz-target": b"DynamoDB_20120810.ListTables"}, b"{}"),
        Request("POST", "/", {}, b""),
        Request("POST", "/service/GraniteServiceVersion20100801/operation/ListMetrics", {}, b""),
        Request("POST", "/service/Other/operation/ListMetrics", {b"smithy-protocol": b"rpc-v2-cbor"}, b""),
        Request("POST", "/", {b"content-type": b"application/x-www-form-urlencoded"}, b"Action=ListMetrics&Version=2009-01-01"),
        Request("POST", "/", {b"content-type": b"application/x-www-form-urlencoded"}, b"x"),
        Request("GET", "/", {b"x-amz-target": b"GraniteServiceVersion20100801.ListMetrics"}, b""),
        Request("POST", "/", {b"x-amz-target": b"AnyScaleFrontendService.NoSuchThing"}, b"{}"),
    ],
)
def test_what_names_no_operation_is_unknown(request_: Request) -> None:
    with pytest.raises(UnknownOperation):
        codec_of(request_).call(request_, served=["ListMetrics", "PutScalingPolicy"])


def test_rules_of_the_model_hold_in_every_protocol() -> None:
    for protocol in ("json", "query", "smithy-rpc-v2-cbor"):
        request = sent("cloudwatch", protocol, "GetMetricStatistics", STATISTICS | {"Period": 0})
        with pytest.raises(ValidationFailed, match="'period' failed to satisfy constraint: Member must have value greater than"):
            codec_of(request).call(request, served=["GetMetricStatistics"])


# Values of any shape of the models, valid or not by their rules: the form must survive, whatever the content.

_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=8)
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXTS,
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**53), 2**53),
    "float": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "timestamp": st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC)),  # noqa: DTZ001
    "blob": st.binary(max_size=8),
}


def values(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    if shape.type_name == "structure":
        members = {} if depth > 4 else {name: values(member, depth + 1) for name, member in shape.members.items()}
        return st.fixed_dictionaries({}, optional=members)
    if shape.type_name == "list":
        return st.lists(values(shape.member, depth + 1).filter(lambda item: item not in ({}, [])), min_size=1, max_size=3)
    if shape.type_name == "map":
        return st.dictionaries(_TEXTS.filter(bool), values(shape.value, depth + 1), min_size=1, max_size=3)
    return _SCALARS[shape.type_name]


def pruned(value: Any) -> Any:
    """Without structures that say nothing, which are not sent."""
    if isinstance(value, dict):
        kept = {key: pruned(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item != {}}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def operations(service: str, member: str) -> list[OperationModel]:
    model = load_service(service)
    found = (model.operation_model(name) for name in model.operation_names)
    return [operation for operation in found if getattr(operation, member) is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("service", "protocol"), ROADS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_answer_survives_the_way_to_boto3(service: str, protocol: str, data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(operations(service, "output_shape")))
    output = data.draw(values(operation.output_shape))
    parsed = received(service, protocol, operation.name, codec(service, protocol).reply(operation.name, as_seconds(output), request_id="r"))
    parsed.pop("ResponseMetadata")
    expected = pruned(output)
    assert {key: pruned(item) for key, item in parsed.items() if item or key in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize(("service", "protocol"), ROADS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_call_of_boto3_is_read_or_told_which_rule_it_breaks(service: str, protocol: str, data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(operations(service, "input_shape")))
    params = pruned(data.draw(values(operation.input_shape)))
    request = sent(service, protocol, operation.name, params)
    try:
        call = codec_of(request).call(request, served=[operation.name])
    except ValidationFailed:
        return  # the values are drawn without regard to the model's rules
    assert pruned(call.params) == as_seconds(params)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary() | st.floats(allow_nan=False),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_cbor_reads_what_it_writes(value: Any) -> None:
    assert cbor.loads(cbor.dumps(value)) == value


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_bad_input(data: bytes) -> None:
    with contextlib.suppress(BadInput):
        cbor.loads(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "too early"),  # a list of 2**64 - 1 items
        (b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "too early"),  # bytes that many
        (b"\x81" * 100 + b"\x00", "deeper than 64"),
        (b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01", "tag 4"),  # a decimal of an enormous exponent
        (b"\xa1\x80\x00", "not CBOR"),  # a list as a key
        (b"\x00\x00", "something follows"),
        (b"\x7f\x41a\xff", "parts of another kind"),
        (b"\x62\xff\xff", "not CBOR"),
        (b"", "too early"),
    ],
)
def test_cbor_that_lies_costs_nothing(data: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        cbor.loads(data)


def test_cbor_in_parts_is_put_together() -> None:
    assert cbor.loads(b"\xbf\x61a\x9f\x01\xff\x7f\x61b\x61c\xff\xc1\xfb\x41\xd9\xac\xad\xb5\x00\x00\x00\xff") == {
        "a": [1],
        "bc": 1722988244.0,
    }


def test_the_hosting_api_is_what_nobody_else_answers() -> None:
    assert codec_of(Request("POST", "/", {b"x-amz-target": b"SageMaker.ListModels"})) is sagemaker_codec()
