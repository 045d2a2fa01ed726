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


@pytest.mark.slow
def test_the_aws_command_line_deploys_and_removes_an_endpoint(server: Server) -> None:
    answer(server, "create-model", "--model-name", "m", "--primary-container", json.dumps(container()))
    config = ("--endpoint-config-name", "c")
    answer(server, "create-endpoint-config", *config, "--production-variants", json.dumps([variant()]))
    created = answer(server, "create-endpoint", "--endpoint-name", "e", *config)
    assert created == {"EndpointArn": "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e"}
    answer(server, "wait", "endpoint-in-service", "--endpoint-name", "e")
    assert answer(server, "describe-endpoint", "--endpoint-name", "e")["EndpointStatus"] == "InService"
    assert [e["EndpointName"] for e in answer(server, "list-endpoints")["Endpoints"]] == ["e"]
    answer(server, "delete-endpoint", "--endpoint-name", "e")
    answer(server, "wait", "endpoint-deleted", "--endpoint-name", "e")


@pytest.mark.slow
def test_the_aws_command_line_shows_our_sentences(server: Server) -> None:
    done = aws(server, "describe-endpoint", "--endpoint-name", "e")
    assert done.returncode != 0
    assert "(ValidationException)" in done.stderr
    assert 'Could not find endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e".' in done.stderr
