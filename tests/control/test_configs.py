from typing import Any

import pytest
from botocore.exceptions import ClientError

from .calls import container, variant

ARN = "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/c"
CAPTURE = {"InitialSamplingPercentage": 5, "DestinationS3Uri": "s3://b/c", "CaptureOptions": [{"CaptureMode": "Input"}]}


@pytest.fixture
def client(sagemaker: Any) -> Any:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    return sagemaker


def refusal(client: Any, *variants: dict[str, Any], **params: Any) -> str:
    with pytest.raises(ClientError) as refused:
        client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=list(variants) or [variant()], **params)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    message: str = refused.value.response["Error"]["Message"]
    return message


def test_a_configuration_is_described_as_it_was_created_with_the_default_weight(client: Any) -> None:
    harmless: dict[str, Any] = {
        "VolumeSizeInGB": 8,
        "ModelDataDownloadTimeoutInSeconds": 60,
        "ContainerStartupHealthCheckTimeoutInSeconds": 60,
        "RoutingConfig": {"RoutingStrategy": "RANDOM"},
    }
    answer = client.create_endpoint_config(
        EndpointConfigName="c", ProductionVariants=[variant(**harmless)], KmsKeyId="key", Tags=[{"Key": "a", "Value": "b"}]
    )
    assert answer["EndpointConfigArn"] == ARN
    described = client.describe_endpoint_config(EndpointConfigName="c")
    assert described.pop("CreationTime")
    described.pop("ResponseMetadata")
    assert described == {
        "EndpointConfigName": "c",
        "EndpointConfigArn": ARN,
        "KmsKeyId": "key",
        "ProductionVariants": [variant(**harmless, InitialVariantWeight=1.0)],
    }


def test_instance_types_of_our_own_are_admitted(client: Any) -> None:
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant(InstanceType="ml.local.small")])


def test_an_unknown_instance_type_is_told_the_set(client: Any) -> None:
    message = refusal(client, variant(InstanceType="X"))
    assert message.startswith(
        "1 validation error detected: Value 'X' at 'productionVariants.1.member.instanceType' "
        "failed to satisfy constraint: Member must satisfy enum value set: [ml."
    )


def test_an_unknown_model_is_refused(client: Any) -> None:
    assert refusal(client, variant(model="n")) == 'Could not find model "arn:aws:sagemaker:us-east-1:000000000000:model/n".'


def test_a_second_configuration_of_the_name_is_refused(client: Any) -> None:
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()])
    assert refusal(client) == f'Cannot create already existing endpoint configuration "{ARN}".'


def test_capture_that_is_switched_off_is_harmless(client: Any) -> None:
    client.create_endpoint_config(
        EndpointConfigName="c", ProductionVariants=[variant()], DataCaptureConfig=CAPTURE | {"EnableCapture": False}
    )
    assert client.describe_endpoint_config(EndpointConfigName="c")["DataCaptureConfig"]["EnableCapture"] is False


def test_a_shadow_variant_is_kept_beside_its_one_production_variant(client: Any) -> None:
    shadow = variant("shadow", InitialVariantWeight=0.5)
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()], ShadowProductionVariants=[shadow])
    described = client.describe_endpoint_config(EndpointConfigName="c")
    assert described["ShadowProductionVariants"] == [shadow]


@pytest.mark.parametrize(
    ("production", "shadows", "sentence"),
    [
        ([variant("a"), variant("b")], [variant("s")], "2 production and 1 shadow variants were given"),
        ([variant("a")], [variant("s"), variant("t")], "1 production and 2 shadow variants were given"),
        ([variant("a")], [variant("a")], 'The variant name "a" was non-unique within the request.'),
        (
            [variant("a")],
            [variant("s", ServerlessConfig={"MemorySizeInMB": 1024, "MaxConcurrency": 1})],
            "ServerlessConfig is not supported",
        ),
        ([variant("a")], [variant("s", model="n")], 'Could not find model "'),
    ],
)
def test_a_shadow_variant_has_one_production_variant_and_its_own_rules(
    client: Any, production: list[dict[str, Any]], shadows: list[dict[str, Any]], sentence: str
) -> None:
    assert sentence in refusal(client, *production, ShadowProductionVariants=shadows)


def test_publishing_intervals_of_metrics_are_kept(client: Any) -> None:
    metrics = {"EnableEnhancedMetrics": True, "MetricPublishFrequencyInSeconds": 60}
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()], MetricsConfig=metrics)
    assert client.describe_endpoint_config(EndpointConfigName="c")["MetricsConfig"] == metrics


@pytest.mark.parametrize("operation", ["describe_endpoint_config", "delete_endpoint_config"])
def test_an_unknown_configuration_is_told_by_its_arn(client: Any, operation: str) -> None:
    with pytest.raises(ClientError) as refused:
        getattr(client, operation)(EndpointConfigName="c")
    assert refused.value.response["Error"] == {
        "Code": "ValidationException",
        "Message": f'Could not find endpoint configuration "{ARN}".',
    }


def test_a_deleted_configuration_is_gone(client: Any) -> None:
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()])
    client.delete_endpoint_config(EndpointConfigName="c")
    assert client.list_endpoint_configs()["EndpointConfigs"] == []


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"VariantName": "v", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}, "ModelName is missing"),
        ({"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1}, "InstanceType is missing"),
        ({"VariantName": "v", "ModelName": "m", "InstanceType": "ml.c5.xlarge"}, "InitialInstanceCount is missing"),
        (variant(ServerlessConfig={"MemorySizeInMB": 1024, "MaxConcurrency": 1}), "ServerlessConfig is not supported"),
        (variant(InstancePools=[{"InstanceType": "ml.c5.xlarge", "Priority": 1}]), "InstancePools is not supported"),
        (variant(CoreDumpConfig={"DestinationS3Uri": "s3://b/c"}), "CoreDumpConfig is not supported"),
        (variant(AcceleratorType="ml.eia1.large"), "AcceleratorType is not supported"),
        (variant(EnableSSMAccess=True), "EnableSSMAccess is not supported"),
        (
            variant(ManagedInstanceScaling={"Status": "ENABLED"}),
            "ManagedInstanceScaling is only supported for inference component endpoints.",
        ),
    ],
)
def test_what_a_variant_cannot_be_is_refused_with_a_sentence(client: Any, broken: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(client, broken)


def test_two_variants_of_one_name_are_refused(client: Any) -> None:
    assert refusal(client, variant(), variant()) == 'The variant name "AllTraffic" was non-unique within the request.'


@pytest.mark.parametrize(
    "params",
    [
        {"DataCaptureConfig": CAPTURE},
        {"DataCaptureConfig": CAPTURE | {"EnableCapture": True}},
        {"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://b/o"}}},
        {"ExplainerConfig": {}},
        {"EnableNetworkIsolation": True},
    ],
)
def test_what_a_configuration_cannot_have_is_refused_by_name(client: Any, params: dict[str, Any]) -> None:
    assert f"{next(iter(params))} is not supported by flatshare" in refusal(client, **params)
