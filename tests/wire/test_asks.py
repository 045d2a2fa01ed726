"""What a call asks to do, as the caller's grants are asked."""

import orjson
import pytest

from flatshare.core.access import Ask, Resource
from flatshare.wire import asks
from flatshare.wire.http import Request
from flatshare.wire.sagemaker import parse_invocation


def control(operation: str, body: object) -> Request:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, content)


def test_an_invocation_names_endpoint_and_target() -> None:
    call = parse_invocation(Request("POST", "/endpoints/e/invocations", {b"x-amzn-sagemaker-target-model": "ä/x".encode()}))
    assert call is not None
    assert asks.of_invocation(call) == Ask("sagemaker:InvokeEndpoint", (Resource("endpoint", "e"),), "ä/x")


def test_an_invocation_without_a_target_names_an_empty_one() -> None:
    call = parse_invocation(Request("POST", "/endpoints/e/invocations", {}))
    assert call is not None
    assert asks.of_invocation(call).target_model == ""


@pytest.mark.parametrize(
    ("operation", "body", "named"),
    [
        ("DeleteModel", {"ModelName": "m"}, ["model/m"]),
        ("CreateEndpoint", {"EndpointName": "e", "EndpointConfigName": "c"}, ["endpoint/e", "endpoint-config/c"]),
        (
            "CreateEndpointConfig",
            {
                "EndpointConfigName": "c",
                "ProductionVariants": [{"ModelName": "m"}, {"ModelName": "n"}, 1],
                "ShadowProductionVariants": [{"ModelName": "s"}],
            },
            ["endpoint-config/c", "model/m", "model/n", "model/s"],
        ),
        ("AddTags", {"ResourceArn": "arn:aws:sagemaker:r:1:endpoint/e"}, ["endpoint/e"]),
        ("ListTags", {"ResourceArn": "nonsense"}, ["resource/nonsense"]),
        ("ListEndpoints", {"NameContains": "e"}, []),
        ("CreateModel", {"ModelName": 1}, []),
        ("CreateEndpointConfig", {"ProductionVariants": "x"}, []),
        ("CreateModel", [], []),
        ("CreateModel", b"{", []),
        ("CreateModel", b"", []),
    ],
)
def test_a_control_call_names_everything_that_its_body_refers_to(operation: str, body: object, named: list[str]) -> None:
    ask = asks.of_control_call(control(operation, body))
    assert ask.action == f"sagemaker:{operation}"
    assert [f"{resource.kind}/{resource.name}" for resource in ask.resources] == named
    assert ask.target_model is None


def test_another_services_call_is_an_action_of_its_own() -> None:
    assert asks.of_control_call(Request("POST", "/", {b"x-amz-target": b"Other.CreateModel"})).action == "Other:CreateModel"
    assert asks.of_control_call(Request("POST", "/", {})).action == ":"


@pytest.mark.parametrize(
    ("operation", "changes"), [("CreateModel", True), ("DeleteTags", True), ("ListTags", False), ("DescribeModel", False)]
)
def test_what_is_not_read_is_a_mutation(operation: str, *, changes: bool) -> None:
    assert asks.is_mutation(control(operation, {})) is changes


def test_every_operation_that_is_served_names_what_it_is_about_or_lists_all() -> None:
    """A new operation whose resources this does not see would be open to any grant for `*` only: safe, and noticed here."""
    from flatshare.control.app import OPERATIONS
    from flatshare.wire.aws_json import sagemaker_codec

    service = sagemaker_codec()._service
    seen = {"EndpointName", "EndpointConfigName", "ModelName", "ResourceArn"}
    for operation in OPERATIONS:
        shape = service.operation_model(operation).input_shape
        assert shape is not None
        assert operation.startswith("List") or seen & set(shape.members), operation
