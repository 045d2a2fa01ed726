import contextlib
import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadInput, UnknownOperation, ValidationFailed
from flatshare.wire.aws_codec import Call
from flatshare.wire.aws_json import error_reply, sagemaker_codec
from flatshare.wire.http import Request

SERVED = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "ListModels", "AddTags", "DeleteModel", "DescribeEndpoint"]
CODEC = sagemaker_codec()


def request(operation: str, body: bytes, *, prefix: str = "SageMaker") -> Request:
    return Request("POST", "/", {b"x-amz-target": f"{prefix}.{operation}".encode()}, body)


def parsed(operation: str, **params: Any) -> Call:
    return CODEC.call(request(operation, orjson.dumps(params)), served=SERVED)


def refusal(operation: str, **params: Any) -> str:
    with pytest.raises(ValidationFailed) as refused:
        parsed(operation, **params)
    return str(refused.value)


def model(**container: Any) -> dict[str, Any]:
    return {"ModelName": "m", "PrimaryContainer": container}


def config(**variant: Any) -> dict[str, Any]:
    return {"EndpointConfigName": "c", "ProductionVariants": [{"VariantName": "v"} | variant]}


def test_a_call_is_its_operation_and_its_checked_parameters() -> None:
    assert parsed("CreateModel", **model(Mode="MultiModel")) == Call("CreateModel", model(Mode="MultiModel"))


def test_members_that_the_model_does_not_know_and_nulls_are_left_out() -> None:
    assert parsed("CreateModel", ModelName="m", Nonsense=1, VpcConfig=None).params == {"ModelName": "m"}


def test_an_empty_body_is_a_call_without_parameters() -> None:
    assert CODEC.call(request("ListModels", b""), served=SERVED) == Call("ListModels", {})


@pytest.mark.parametrize("operation", ["CreateTrainingJob", "NoSuchThing", ""])
def test_an_operation_that_is_not_served_is_unknown(operation: str) -> None:
    with pytest.raises(UnknownOperation):
        CODEC.call(request(operation, b"{}"), served=SERVED)


def test_another_service_s_target_is_unknown() -> None:
    with pytest.raises(UnknownOperation, match=r"X-Amz-Target: SageMaker\.<operation>"):
        CODEC.call(request("ListModels", b"{}", prefix="DynamoDB_20120810"), served=SERVED)


def test_a_request_that_is_not_a_post_is_unknown() -> None:
    with pytest.raises(UnknownOperation):
        CODEC.call(Request("GET", "/", {b"x-amz-target": b"SageMaker.ListModels"}), served=SERVED)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b'{"MaxResults": "10"}', b'{"MaxResults": 1.5}', b'{"MaxResults": true}'])
def test_a_body_of_the_wrong_kind_is_not_understood(body: bytes) -> None:
    with pytest.raises(BadInput) as refused:
        CODEC.call(request("ListModels", body), served=SERVED)
    assert not isinstance(refused.value, ValidationFailed)


def test_a_missing_member_is_named() -> None:
    assert refusal("CreateModel") == (
        "1 validation error detected: Value null at 'modelName' failed to satisfy constraint: Member must not be null"
    )


def test_a_value_outside_an_enum_is_told_the_set() -> None:
    assert refusal("CreateModel", **model(Mode="Many")) == (
        "1 validation error detected: Value 'Many' at 'primaryContainer.mode' failed to satisfy constraint: "
        "Member must satisfy enum value set: [SingleModel, MultiModel]"
    )


def test_a_list_item_is_named_by_its_number() -> None:
    message = refusal("CreateEndpointConfig", **config(InstanceType="X"))
    assert message.startswith(
        "1 validation error detected: Value 'X' at 'productionVariants.1.member.instanceType' failed to satisfy constraint: "
        "Member must satisfy enum value set: [ml."
    )


def test_a_pattern_a_length_and_a_range_are_told() -> None:
    assert refusal("CreateModel", ModelName="a_b").endswith(
        r"Member must satisfy regular expression pattern: [a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?"
    )
    assert refusal("CreateModel", ModelName="a" * 64).endswith("Member must have length less than or equal to 63")
    assert refusal("ListModels", MaxResults=0).endswith("Member must have value greater than or equal to 1")
    assert refusal("ListModels", MaxResults=101).endswith("Member must have value less than or equal to 100")
    assert "Member must have length greater than or equal to 1" in refusal(
        "CreateEndpointConfig", EndpointConfigName="c", ProductionVariants=[]
    )


def test_several_problems_are_counted_and_joined() -> None:
    message = refusal("CreateEndpointConfig", **config(InitialInstanceCount=0, InitialVariantWeight=-1))
    assert message.startswith("2 validation errors detected: Value '0' at 'productionVariants.1.member.initialInstanceCount'")
    assert "; Value '-1.0' at 'productionVariants.1.member.initialVariantWeight'" in message


@pytest.mark.parametrize("url", ["s3://b/p/", "s3://b", "file:///models/", "gs://b/p", "az://c/p", "https://b.example/p"])
def test_model_data_may_lie_in_every_store(url: str) -> None:
    parsed("CreateModel", **model(ModelDataUrl=url))


@pytest.mark.parametrize("url", ["ftp://b/p", "/models", "file://models", "s3:///p"])
def test_model_data_elsewhere_is_refused(url: str) -> None:
    assert "primaryContainer.modelDataUrl" in refusal("CreateModel", **model(ModelDataUrl=url))


def test_instance_types_of_our_own_begin_with_ml_local() -> None:
    parsed("CreateEndpointConfig", **config(InstanceType="ml.local.h100"))
    parsed("CreateEndpointConfig", **config(InstanceType="ml.g4dn.xlarge"))


def test_tags_admit_letters_of_any_script_and_refuse_control_characters() -> None:
    arn = "arn:aws:sagemaker:us-east-1:000000000000:model/m"
    parsed("AddTags", ResourceArn=arn, Tags=[{"Key": "größe 1", "Value": "日本"}])
    assert "tags.1.member.key" in refusal("AddTags", ResourceArn=arn, Tags=[{"Key": "a\nb", "Value": ""}])


def test_timestamps_are_read_as_numbers_or_in_iso_form() -> None:
    assert parsed("ListModels", CreationTimeAfter=1.5).params == {"CreationTimeAfter": 1.5}
    for text in ("1970-01-01T00:00:02Z", "1970-01-01T00:00:02", "1970-01-01T01:00:02+01:00"):
        assert parsed("ListModels", CreationTimeAfter=text).params == {"CreationTimeAfter": 2.0}


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1e300, 10**30])
def test_an_integer_is_one_of_32_bits(value: float) -> None:
    with pytest.raises(BadInput, match="cannot be converted to a value of type integer"):
        CODEC.call(request("ListModels", json.dumps({"MaxResults": value}).encode()), served=SERVED)


def test_a_time_that_is_none_is_not_understood() -> None:
    with pytest.raises(BadInput, match="timestamp"):
        parsed("ListModels", CreationTimeAfter="yesterday")


def test_a_map_is_checked_in_keys_and_values() -> None:
    assert parsed("CreateModel", **model(Environment={"A": "1"})).params == model(Environment={"A": "1"})
    assert "primaryContainer.environment" in refusal("CreateModel", **model(Environment={"1 bad": "1"}))


def test_a_reply_leaves_out_what_is_unset_or_empty() -> None:
    output: dict[str, Any] = {
        "EndpointName": "e",
        "FailureReason": None,
        "LastDeploymentConfig": {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {}}},
        "ProductionVariants": [{"VariantName": "v", "RoutingConfig": {"RoutingStrategy": None}}],
        "CreationTime": 1.23456,
    }
    reply = CODEC.reply("DescribeEndpoint", output, request_id="r")
    assert orjson.loads(reply.body) == {
        "EndpointName": "e",
        "ProductionVariants": [{"VariantName": "v"}],
        "CreationTime": 1.235,
    }
    assert (reply.status, reply.content_type) == (200, b"application/x-amz-json-1.1")
    assert reply.headers == [(b"x-amzn-requestid", b"r")]


def test_an_operation_without_output_has_an_empty_body() -> None:
    assert CODEC.reply("DeleteModel", {}, request_id="r").body == b""


def test_a_member_that_the_model_lacks_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError, match="This is a bug"):
        CODEC.reply("DescribeEndpoint", {"Nonsense": 1}, request_id="r")


def test_an_error_has_its_code_in_body_and_header() -> None:
    reply = error_reply(400, "ValidationException", "no", request_id="r")
    assert orjson.loads(reply.body) == {"__type": "ValidationException", "message": "no"}
    assert (b"x-amzn-errortype", b"ValidationException") in reply.headers


TEXTS = st.text("aA1-_é\n", max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = ["ModelName", "PrimaryContainer", "Containers", "Tags", "VpcConfig", "ProductionVariants", "EndpointConfigName"]


@given(st.sampled_from(SERVED), st.dictionaries(st.sampled_from(NAMES), JSON))
def test_whatever_the_body_the_answer_is_a_call_or_bad_input(operation: str, params: dict[str, Any]) -> None:
    with contextlib.suppress(BadInput):
        assert parsed(operation, **params).operation == operation


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_weights_are_finite_numbers(weight: float) -> None:
    try:
        call = parsed("CreateEndpointConfig", **config(InitialVariantWeight=weight))
        assert math.isclose(call.params["ProductionVariants"][0]["InitialVariantWeight"], weight)
    except ValidationFailed:
        assert weight < 0
