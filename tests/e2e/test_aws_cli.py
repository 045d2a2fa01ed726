"""The real AWS CLI, with nothing but the variables that `flatshare env` prints."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flatshare.bench.server import RunningServer
from tests.e2e.checkpoints import TEXT
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import ROLE, clean_environment, require_vector

pytestmark = pytest.mark.slow
Aws = Callable[..., Any]
_ACCOUNT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "AWS_PAGER": ""}


@pytest.fixture
def aws(server: RunningServer, tmp_path: Path) -> Aws:
    """Run the AWS CLI, and return the JSON that it prints."""
    env = [sys.executable, "-m", "flatshare", "env", "--shell", "dotenv", "--url", server.url]
    printed = subprocess.run(env, stdout=subprocess.PIPE, check=True, timeout=20, text=True).stdout
    variables = dict(line.split("=", 1) for line in printed.splitlines())
    config = tmp_path / "aws-config"
    config.write_text("")
    environment = clean_environment(variables | _ACCOUNT | {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(config)})

    def run(*arguments: str, expected_status: int = 0) -> Any:
        command = [sys.executable, str(Path(sys.executable).with_name("aws")), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60, text=True)
        assert done.returncode == expected_status, done.stderr
        if expected_status:
            return done.stderr
        return orjson.loads(done.stdout) if done.stdout.strip() else None

    return run


def test_the_aws_cli_deploys_describes_invokes_and_deletes(aws: Aws, checkpoints: Path, tmp_path: Path) -> None:
    container = f"Image=x,Mode=MultiModel,ModelDataUrl=file://{checkpoints}/"
    arn = aws("sagemaker", "create-model", "--model-name", "cli", "--primary-container", container, "--execution-role-arn", ROLE)
    assert arn == {"ModelArn": "arn:aws:sagemaker:us-east-1:000000000000:model/cli"}
    variant = "VariantName=AllTraffic,ModelName=cli,InstanceType=ml.c5.xlarge,InitialInstanceCount=1"
    aws("sagemaker", "create-endpoint-config", "--endpoint-config-name", "cli", "--production-variants", variant)
    aws("sagemaker", "create-endpoint", "--endpoint-name", "cli", "--endpoint-config-name", "cli")
    while aws("sagemaker", "describe-endpoint", "--endpoint-name", "cli")["EndpointStatus"] == "Creating":
        pass  # each look takes a second; `wait` would sleep for thirty
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", "cli")

    _require_described(aws)
    _require_invoked(aws, checkpoints, tmp_path)

    aws("sagemaker", "delete-endpoint", "--endpoint-name", "cli")
    message = _until_gone(aws)
    assert 'Could not find endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/cli"' in message
    aws("sagemaker", "wait", "endpoint-deleted", "--endpoint-name", "cli")
    aws("sagemaker", "delete-endpoint-config", "--endpoint-config-name", "cli")
    aws("sagemaker", "delete-model", "--model-name", "cli")


def _require_described(aws: Aws) -> None:
    described = aws("sagemaker", "describe-endpoint", "--endpoint-name", "cli")
    assert (described["EndpointStatus"], described["ProductionVariants"][0]["CurrentInstanceCount"]) == ("InService", 1)
    assert "cli" in [e["EndpointName"] for e in aws("sagemaker", "list-endpoints", "--status-equals", "InService")["Endpoints"]]
    assert [m["ModelName"] for m in aws("sagemaker", "list-models", "--name-contains", "cli")["Models"]] == ["cli"]


def _require_invoked(aws: Aws, checkpoints: Path, tmp_path: Path) -> None:
    body, answer = tmp_path / "body.json", tmp_path / "answer.json"
    body.write_bytes(orjson.dumps({"inputs": TEXT}))
    call = ("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", "cli", "--content-type", "application/json")
    printed = aws(*call, "--target-model", TENANTS[4], "--body", f"fileb://{body}", str(answer))
    assert printed == {"ContentType": "application/json", "InvokedProductionVariant": "AllTraffic"}
    vector = orjson.loads(answer.read_bytes())["embeddings"][0]
    require_vector(np.asarray(vector, np.float32), checkpoints / TENANTS[4])
    error = aws(*call, "--target-model", "nobody", "--body", f"fileb://{body}", str(answer), expected_status=255)
    assert "(ValidationError)" in error
    assert "Nothing lies at" in error


def _until_gone(aws: Aws) -> str:
    """What describe says of the endpoint in the end."""
    while True:
        found = aws("sagemaker", "list-endpoints", "--name-contains", "cli")["Endpoints"]
        if not found:
            return str(aws("sagemaker", "describe-endpoint", "--endpoint-name", "cli", expected_status=255))
