"""The calls that most tests begin with."""

from typing import Any

import orjson

from flatshare.control.plane import Control
from flatshare.wire.http import Request

MODEL_DATA_URL = "s3://models/prefix/"
IMAGE = "example.com/flatshare:1"


def container(**changes: Any) -> dict[str, Any]:
    return {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": MODEL_DATA_URL} | changes


def variant(name: str = "AllTraffic", *, model: str = "m", count: int = 1, **more: Any) -> dict[str, Any]:
    return {"VariantName": name, "ModelName": model, "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": count} | more


def deploy(client: Any, name: str = "e", *, variants: list[dict[str, Any]] | None = None) -> None:
    """Model `m`, configuration `<name>-config`, endpoint `<name>`."""
    client.create_model(ModelName="m", PrimaryContainer=container())
    client.create_endpoint_config(EndpointConfigName=f"{name}-config", ProductionVariants=variants or [variant()])
    client.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-config")


async def call(control: Control, operation: str, **params: Any) -> dict[str, Any]:
    """A call without HTTP. Fails the test if the answer is an error."""
    reply = await control.handle(Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, orjson.dumps(params)))
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = orjson.loads(reply.body or b"{}")
    return answer


async def call_deploy(control: Control, name: str = "e", *, variants: list[dict[str, Any]] | None = None) -> None:
    """As `deploy`, without HTTP."""
    await call(control, "CreateModel", ModelName="m", PrimaryContainer=container())
    await call_configure(control, f"{name}-config", variants or [variant()])
    await call(control, "CreateEndpoint", EndpointName=name, EndpointConfigName=f"{name}-config")


async def call_configure(control: Control, name: str, variants: list[dict[str, Any]]) -> None:
    await call(control, "CreateEndpointConfig", EndpointConfigName=name, ProductionVariants=variants)
