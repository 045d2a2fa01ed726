"""The real AWS command line, unmodified."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .calls import container, variant
from .conftest import Server


def aws(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "aws"
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_SAGEMAKER": server.url,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [str(program), "sagemaker", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def answer(server: Server, *arguments: str) -> Any:
    done = aws(server, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


ARN = "arn:aws:sagemaker:us-east-1:000000000000"
ENDPOINT, CONFIG, MODEL = ("--endpoint-name", "e"), ("--endpoint-config-name", "c"), ("--model-name", "m")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_aws_command_line_deploys_lists_changes_and_removes_everything(server: Server) -> None:
    """Each operation of the API once, by its command."""
    _create(server)
    _wait(server, "endpoint-in-service")
    _look(server)
    _change(server)
    answer(server, "delete-endpoint", *ENDPOINT)
    _wait(server, "endpoint-deleted")
    answer(server, "delete-endpoint-config", *CONFIG)
    answer(server, "delete-model", *MODEL)
    assert answer(server, "list-models") == {"Models": []}


def _wait(server: Server, what: str) -> None:
    """By the command line, which looks every 30 s, when its first look will do."""
    server.client().get_waiter(what.replace("-", "_")).wait(EndpointName="e", WaiterConfig={"Delay": 0.05, "MaxAttempts": 200})
    answer(server, "wait", what, *ENDPOINT)


def _create(server: Server) -> None:
    tags = ("--tags", "Key=team,Value=search")
    created = answer(server, "create-model", *MODEL, "--primary-container", json.dumps(container()), *tags)
    assert created == {"ModelArn": f"{ARN}:model/m"}
    for name, count in (("c", 1), ("d", 2)):
        config = ("--endpoint-config-name", name, "--production-variants", json.dumps([variant(count=count)]))
        assert answer(server, "create-endpoint-config", *config) == {"EndpointConfigArn": f"{ARN}:endpoint-config/{name}"}
    assert answer(server, "create-endpoint", *ENDPOINT, *CONFIG) == {"EndpointArn": f"{ARN}:endpoint/e"}


def _look(server: Server) -> None:
    described = answer(server, "describe-endpoint", *ENDPOINT)
    assert (described["EndpointStatus"], described["ProductionVariants"][0]["CurrentInstanceCount"]) == ("InService", 1)
    assert answer(server, "describe-model", *MODEL)["PrimaryContainer"] == container()
    assert answer(server, "describe-endpoint-config", *CONFIG)["ProductionVariants"] == [variant(InitialVariantWeight=1.0)]
    assert [e["EndpointName"] for e in answer(server, "list-endpoints", "--status-equals", "InService")["Endpoints"]] == ["e"]
    by_name = ("--sort-by", "Name", "--sort-order", "Ascending", "--page-size", "1")  # the command line gathers the pages
    assert [c["EndpointConfigName"] for c in answer(server, "list-endpoint-configs", *by_name)["EndpointConfigs"]] == ["c", "d"]
    assert [m["ModelName"] for m in answer(server, "list-models", "--name-contains", "m")["Models"]] == ["m"]


def _change(server: Server) -> None:
    resource = ("--resource-arn", f"{ARN}:model/m")
    answer(server, "add-tags", *resource, "--tags", "Key=stage,Value=test")
    answer(server, "delete-tags", *resource, "--tag-keys", "team")
    assert answer(server, "list-tags", *resource) == {"Tags": [{"Key": "stage", "Value": "test"}]}
    wanted = json.dumps([{"VariantName": "AllTraffic", "DesiredWeight": 3, "DesiredInstanceCount": 3}])
    answer(server, "update-endpoint-weights-and-capacities", *ENDPOINT, "--desired-weights-and-capacities", wanted)
    _wait(server, "endpoint-in-service")
    retained = ("--retain-all-variant-properties", "--exclude-retained-variant-properties", "VariantPropertyType=DesiredWeight")
    answer(server, "update-endpoint", *ENDPOINT, "--endpoint-config-name", "d", *retained)
    _wait(server, "endpoint-in-service")
    described = answer(server, "describe-endpoint", *ENDPOINT)
    [now] = described["ProductionVariants"]
    assert (described["EndpointConfigName"], now["DesiredInstanceCount"], now["DesiredWeight"]) == ("d", 3, 1.0)


@pytest.mark.slow
def test_the_aws_command_line_shows_our_sentences(server: Server) -> None:
    done = aws(server, "describe-endpoint", "--endpoint-name", "e")
    assert done.returncode != 0
    assert "(ValidationException)" in done.stderr
    assert 'Could not find endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e".' in done.stderr
