"""A shadow variant beside production, with real models: the same weights agree, others differ, and callers hear production alone."""

import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest

from flatshare.bench.server import RunningServer
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import ROLE, Endpoint, until

pytestmark = pytest.mark.slow
CALLS = 4


def deploy_with_shadow(server: RunningServer, name: str, production: Path, shadow: Path) -> Endpoint:
    for role, folder in ((name, production), (f"{name}-shadow", shadow)):
        container = {"Image": "x", "Mode": "MultiModel", "ModelDataUrl": f"file://{folder}/"}
        server.sagemaker.create_model(ModelName=role, PrimaryContainer=container, ExecutionRoleArn=ROLE)

    def variant(model: str) -> dict[str, Any]:
        return {"VariantName": model, "ModelName": model, "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}

    server.sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant(name)], ShadowProductionVariants=[variant(f"{name}-shadow")]
    )
    server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 200})
    return Endpoint(server, name, production)


def shadow_of(endpoint: Endpoint) -> dict[str, Any]:
    with urllib.request.urlopen(f"{endpoint.server.url}/flatshare/status", timeout=10) as answer:
        [record] = [shadow for shadow in orjson.loads(answer.read())["shadows"] if shadow["endpoint"] == endpoint.name]
        found: dict[str, Any] = record
        return found


@pytest.mark.parametrize(("seed", "outcome"), [(950, "agreed"), (951, "differed")])
def test_a_shadow_is_compared_and_never_answers(server: RunningServer, tmp_path: Path, seed: int, outcome: str) -> None:
    production, shadow = tmp_path / "production", tmp_path / "shadow"
    write_checkpoint(production / "acme", 950)
    write_checkpoint(shadow / "acme", seed)
    endpoint = deploy_with_shadow(server, f"shadowed-{outcome}", production, shadow)
    try:
        for _ in range(CALLS):
            endpoint.require_right("acme")
        until(lambda: sum(shadow_of(endpoint)["outcomes"].values()) == CALLS)
        record = shadow_of(endpoint)
        assert record["outcomes"] == {"agreed": 0, "differed": 0, "failed": 0, "dropped": 0} | {outcome: CALLS}
        assert (record["recent"]["cosine_mean"] > 0.9999) is (outcome == "agreed")
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
            labels = f'endpoint="{endpoint.name}",outcome="{outcome}",variant="{endpoint.name}-shadow"'
            assert f"flatshare_shadow_copies_total{{{labels}}} {CALLS}.0" in answer.read().decode()
    finally:
        server.sagemaker.delete_endpoint(EndpointName=endpoint.name)
