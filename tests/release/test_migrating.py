"""An existing multi-model deployment is made again here, from what SageMaker's own calls say of it (a mock of them)."""

from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest

from flatshare.bench.server import RunningServer
from flatshare.core.errors import BadInput, BadPackage
from flatshare.core.signature import Task
from flatshare.release import migrating
from tests.families import save_model
from tests.writers import llama, save, t5

pytestmark = pytest.mark.slow
ROLE = "arn:aws:iam::123456789012:role/models"


@pytest.fixture
def deployment(at_aws: str) -> str:
    """A multi-model endpoint, and one with a single model; the prefix of the first."""
    sagemaker, prefix = boto3.client("sagemaker"), f"s3://{at_aws}/prefix/"
    for name, mode in (("many", "MultiModel"), ("one", "SingleModel")):
        sagemaker.create_model(
            ModelName=f"{name}-model",
            PrimaryContainer={"Image": "account/image:1", "Mode": mode, "ModelDataUrl": prefix, "Environment": {"A": "b"}},
            ExecutionRoleArn=ROLE,
        )
        variant = {
            "VariantName": "v",
            "ModelName": f"{name}-model",
            "InstanceType": "ml.g4dn.xlarge",
            "InitialInstanceCount": 3,
            "InitialVariantWeight": 1.0,
        }
        sagemaker.create_endpoint_config(EndpointConfigName=f"{name}-config", ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-config")
    return prefix


def test_multi_model_endpoints_come_over_and_others_are_named(deployment: str, server: RunningServer, tmp_path: Path) -> None:
    migrating.save(migrating.describe_all(boto3.client("sagemaker")), tmp_path / "found.json")
    found = migrating.load([tmp_path / "found.json"])
    for _ in range(2):  # a second time changes nothing
        moved = {one.endpoint: one for one in migrating.recreate(found, server.sagemaker, instance_count=1)}
        assert moved["many"].prefixes == (deployment,)
        assert "not every variant is a multi-model container" in moved["one"].left
    server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="many", WaiterConfig={"Delay": 0.1, "MaxAttempts": 600})
    described = server.sagemaker.describe_endpoint(EndpointName="many")
    assert described["ProductionVariants"][0]["DesiredInstanceCount"] == 1
    container = server.sagemaker.describe_model(ModelName="many-model")["PrimaryContainer"]
    assert (container["ModelDataUrl"], container["Environment"]) == (deployment, {"A": "b"})


def test_the_aws_clis_descriptions_are_read_too(deployment: str, tmp_path: Path) -> None:
    sagemaker = boto3.client("sagemaker")
    described = {
        "endpoint": sagemaker.describe_endpoint(EndpointName="many"),
        "config": sagemaker.describe_endpoint_config(EndpointConfigName="many-config"),
        "model": sagemaker.describe_model(ModelName="many-model"),
    }
    for name, fields in described.items():
        (tmp_path / f"{name}.json").write_bytes(orjson.dumps(fields, default=str))
    found = migrating.load(tmp_path / f"{name}.json" for name in described)
    assert found.models["many-model"]["PrimaryContainer"]["ModelDataUrl"] == deployment
    for name, sentence in (("config", "configuration 'many-config' of endpoint 'many' is missing"), ("model", "model 'many-model'")):
        with pytest.raises(BadInput, match=sentence):
            migrating.load(tmp_path / f"{other}.json" for other in described if other != name)


@pytest.mark.parametrize(("model", "layout"), [(t5(1), "autocomplete"), (llama(1), "drafting")])
def test_models_that_write_have_their_layouts(tmp_path: Path, model: Any, layout: str) -> None:
    assert migrating.layout_for(save(model, tmp_path / "model")) == layout


@pytest.mark.parametrize(("task", "layout"), [(Task.EMBEDDING, "encoder"), (Task.CLASSIFICATION, "classifier"), (Task.RANKING, "ranker")])
def test_a_checkpoints_config_tells_its_layout(tmp_path: Path, task: Task, layout: str) -> None:
    assert migrating.layout_for(save_model(tmp_path, "bert", task)) == layout


def test_what_no_layout_ships_for_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(orjson.dumps({"architectures": ["WhisperForConditionalGeneration"]}))
    with pytest.raises(BadPackage, match="no layout ships for WhisperForConditionalGeneration"):
        migrating.layout_for(tmp_path)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(BadInput, match="is not what 'flatshare import sagemaker --save' writes"):
        migrating.load([tmp_path / "x.json"])
