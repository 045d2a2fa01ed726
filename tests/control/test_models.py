from typing import Any

import pytest
from botocore.exceptions import ClientError

from .calls import IMAGE, MODEL_DATA_URL, container

ARN = "arn:aws:sagemaker:us-east-1:000000000000:model/m"


def refusal(sagemaker: Any, **params: Any) -> str:
    with pytest.raises(ClientError) as refused:
        sagemaker.create_model(**({"ModelName": "m"} | params))
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    message: str = refused.value.response["Error"]["Message"]
    return message


def test_a_model_is_described_as_it_was_created_without_its_tags(sagemaker: Any) -> None:
    params = {
        "PrimaryContainer": container(Environment={"A": "1"}, MultiModelConfig={"ModelCacheSetting": "Enabled"}),
        "ExecutionRoleArn": "arn:aws:iam::123456789012:role/service",
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    }
    assert sagemaker.create_model(ModelName="m", Tags=[{"Key": "a", "Value": "b"}], **params)["ModelArn"] == ARN
    described = sagemaker.describe_model(ModelName="m")
    created = described.pop("CreationTime")
    described.pop("ResponseMetadata")
    assert described == {"ModelName": "m", "ModelArn": ARN} | params
    assert created.timestamp() > 1.7e9


def test_a_model_without_image_and_role_will_do(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer={"Mode": "MultiModel", "ModelDataUrl": "file:///models/"})
    described = sagemaker.describe_model(ModelName="m")
    assert "VpcConfig" not in described
    assert described["PrimaryContainer"] == {"Mode": "MultiModel", "ModelDataUrl": "file:///models/"}


def test_one_container_of_a_pipeline_will_do(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", Containers=[container()])
    assert sagemaker.describe_model(ModelName="m")["Containers"] == [container()]


def test_a_second_model_of_the_name_is_refused_with_the_words_that_the_sdk_looks_for(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    assert refusal(sagemaker, PrimaryContainer=container()) == f'Cannot create already existing model "{ARN}".'


@pytest.mark.parametrize("operation", ["describe_model", "delete_model"])
def test_an_unknown_model_is_told_by_its_arn(sagemaker: Any, operation: str) -> None:
    with pytest.raises(ClientError) as refused:
        getattr(sagemaker, operation)(ModelName="m")
    assert refused.value.response["Error"] == {"Code": "ValidationException", "Message": f'Could not find model "{ARN}".'}
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_deleted_model_is_gone(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    sagemaker.delete_model(ModelName="m")
    assert sagemaker.list_models()["Models"] == []


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "exactly one container"),
        ({"Containers": [container(), container()]}, "exactly one container"),
        ({"PrimaryContainer": {"Image": IMAGE, "ModelDataUrl": MODEL_DATA_URL}}, "Mode is SingleModel"),
        ({"PrimaryContainer": container(Mode="SingleModel")}, "flatshare hosts multi-model containers"),
        ({"PrimaryContainer": {"Image": IMAGE, "Mode": "MultiModel"}}, "ModelDataUrl is missing"),
        ({"PrimaryContainer": container(ModelDataUrl="https://b.example/p/")}, "write it as s3://"),
        ({"PrimaryContainer": container(MultiModelConfig={"ModelCacheSetting": "Disabled"})}, "ModelCacheSetting Disabled"),
        ({"PrimaryContainer": container(ModelPackageName="p")}, "ModelPackageName is not supported"),
        (
            {
                "PrimaryContainer": container(
                    ModelDataSource={"S3DataSource": {"S3Uri": "s3://b/p/", "S3DataType": "S3Prefix", "CompressionType": "None"}}
                )
            },
            "ModelDataSource is not supported",
        ),
        ({"PrimaryContainer": container(), "EnableNetworkIsolation": True}, "EnableNetworkIsolation is not supported"),
        ({"PrimaryContainer": container(), "InferenceExecutionConfig": {"Mode": "Direct"}}, "Direct"),
        ({"PrimaryContainer": container(), "Tags": [{"Key": "aws:x", "Value": ""}]}, "reserved"),
        ({"PrimaryContainer": container(), "Tags": [{"Key": "x", "Value": ""}, {"Key": "x", "Value": "1"}]}, "more than once"),
    ],
)
def test_what_is_not_supported_is_refused_with_a_sentence(sagemaker: Any, params: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(sagemaker, **params)
