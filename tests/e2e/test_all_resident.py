"""All-resident mode through a real server: a deployment that would not fit is refused, and so is a load, each in a sentence."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flatshare.bench.server import RunningServer
from flatshare.client.deploy import IMAGE, ROLE
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import deploy, failure_of, serving

pytestmark = pytest.mark.slow
ROWS = 160_000  # of 32 floats: 20 MB of weights


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    settings = tmp_path / "settings.toml"
    settings.write_text('[memory]\nmode = "all-resident"\n')
    with serving(tmp_path / "server", memory="200MB", options=["--settings", str(settings)]) as running:
        yield running


def configured(server: RunningServer, name: str, folder: Path, count: int = 1) -> dict[str, str]:
    """Model and configuration; the members of the CreateEndpoint that is to follow."""
    container = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": f"file://{folder}/"}
    server.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.local", "InitialInstanceCount": count}
    server.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    return {"EndpointName": name, "EndpointConfigName": name}


def written(folder: Path, count: int) -> Path:
    for seed in range(count):
        write_checkpoint(folder / f"m{seed}", seed, rows=ROWS)
    return folder


def test_a_deployment_that_would_not_stay_in_memory_is_refused_and_says_what_helps(server: RunningServer, tmp_path: Path) -> None:
    seven = written(tmp_path / "seven", 7)
    refused = failure_of(lambda: server.sagemaker.create_endpoint(**configured(server, "seven", seven)))
    assert (refused.status, refused.code) == (400, "ResourceLimitExceeded")
    assert 'the 7 models of endpoint "seven", variant "AllTraffic", would need ' in refused.message
    assert "available are 200 MB" in refused.message
    assert "--memory 2" in refused.message
    assert server.sagemaker.list_endpoints()["Endpoints"] == []

    few = deploy(server, "few", written(tmp_path / "few", 2))
    few.require_right("m1")
    configured(server, "more", seven)
    refused = failure_of(lambda: server.sagemaker.update_endpoint(EndpointName="few", EndpointConfigName="more"))
    assert refused.code == "ResourceLimitExceeded"
    assert server.sagemaker.describe_endpoint(EndpointName="few")["EndpointStatus"] == "InService"
    few.require_right("m0")


def test_a_load_that_would_push_another_model_out_is_refused(server: RunningServer, tmp_path: Path) -> None:
    endpoint = deploy(server, "growing", tmp_path / "growing")
    written(endpoint.folder, 8)
    answers = 0
    failures = []
    for seed in range(8):
        try:
            endpoint.require_right(f"m{seed}")
            answers += 1
        except server.runtime.exceptions.ModelError as error:
            failures.append(error.response)
    assert answers >= 3
    assert failures, "not all of them fit"
    for failure in failures:
        assert failure["OriginalStatusCode"] == 507
        assert "in all-resident mode nothing is evicted: raise --memory, or unload a model" in failure["Error"]["Message"]
    assert endpoint.decisions("evict") == 0
    endpoint.require_right("m0")
