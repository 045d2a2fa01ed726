from typing import Any

import pytest
from botocore.exceptions import ClientError

from .calls import container, deploy

ARN = "arn:aws:sagemaker:us-east-1:000000000000"


def tags_of(client: Any, arn: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in client.list_tags(ResourceArn=arn)["Tags"]}


def test_tags_are_added_changed_and_deleted(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container(), Tags=[{"Key": "a", "Value": "1"}])
    arn = f"{ARN}:model/m"
    answer = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}])
    assert answer["Tags"] == [{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}]
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a", "never"])
    assert tags_of(sagemaker, arn) == {"b": "3"}


def test_configurations_and_endpoints_have_tags_too_and_lose_them_when_deleted(sagemaker: Any) -> None:
    deploy(sagemaker)
    for arn in (f"{ARN}:endpoint/e", f"{ARN}:endpoint-config/e-config"):
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}])
        assert tags_of(sagemaker, arn) == {"a": "1"}
    sagemaker.delete_model(ModelName="m")
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    assert tags_of(sagemaker, f"{ARN}:model/m") == {}


def test_pages_of_tags_are_listed_by_the_paginator(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container(), Tags=[{"Key": f"k{n}", "Value": ""} for n in range(50)])
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=f"{ARN}:model/m")
    assert len([tag for page in pages for tag in page["Tags"]]) == 50


def test_more_than_fifty_tags_are_refused(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container(), Tags=[{"Key": f"k{n}", "Value": ""} for n in range(50)])
    with pytest.raises(ClientError, match="would have 51 tags"):
        sagemaker.add_tags(ResourceArn=f"{ARN}:model/m", Tags=[{"Key": "one-more", "Value": ""}])


@pytest.mark.parametrize(
    ("arn", "sentence"),
    [
        (f"{ARN}:model/m", f'Could not find model "{ARN}:model/m".'),
        (f"{ARN}:endpoint-config/c", f'Could not find endpoint configuration "{ARN}:endpoint-config/c".'),
        (f"{ARN}:endpoint/e", f'Could not find endpoint "{ARN}:endpoint/e".'),
        (f"{ARN}:training-job/t", "is not the ARN of a model"),
        ("arn:aws:sagemaker:eu-west-1:000000000000:model/m", "is not the ARN of a model"),
    ],
)
def test_tags_of_what_does_not_exist_are_refused(sagemaker: Any, arn: str, sentence: str) -> None:
    with pytest.raises(ClientError) as refused:
        sagemaker.list_tags(ResourceArn=arn)
    assert sentence in refused.value.response["Error"]["Message"]
