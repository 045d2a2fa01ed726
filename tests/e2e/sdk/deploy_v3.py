"""A deployment with the resource classes of the SageMaker Python SDK v3 (sagemaker-core). Runs in the SDK's own environment.

Writes what it saw, as JSON. Arguments: the file to write, the prefix of the models, then two target models below it.
"""

import json
import sys
from pathlib import Path

from sagemaker.core.resources import Endpoint, EndpointConfig, Model, Tag
from sagemaker.core.shapes import ContainerDefinition, MultiModelConfig, ProductionVariant
from sagemaker.core.shapes import Tag as TagShape

TEXT = "where is my parcel"
ROLE = "arn:aws:iam::000000000000:role/sagemaker"
told, prefix, first, second = sys.argv[1:]
container = ContainerDefinition(
    image="123456789012.dkr.ecr.us-east-1.amazonaws.com/mme:latest",
    mode="MultiModel",
    model_data_url=prefix,
    multi_model_config=MultiModelConfig(model_cache_setting="Enabled"),
)
model = Model.create(model_name="sdk3", primary_container=container, execution_role_arn=ROLE, tags=[TagShape(key="team", value="search")])


def config(name: str, count: int) -> EndpointConfig:
    variant = ProductionVariant(variant_name="v", model_name="sdk3", initial_instance_count=count, instance_type="ml.c5.xlarge")
    return EndpointConfig.create(endpoint_config_name=name, production_variants=[variant])


configs = [config("sdk3-one", 1), config("sdk3-two", 2)]
endpoint = Endpoint.create(endpoint_name="sdk3", endpoint_config_name="sdk3-one")
endpoint.wait_for_status("InService", poll=1, timeout=60)


def answer(target: str) -> list[float]:
    body = json.dumps({"inputs": TEXT})
    result = endpoint.invoke(body=body, content_type="application/json", accept="application/json", target_model=target)
    vectors: list[list[float]] = json.loads(result.body.read())["embeddings"]
    return vectors[0]


seen: dict[str, object] = {"first": answer(first), "second": answer(second)}
seen["tags"] = {tag.key: tag.value for tag in Tag.get_all(resource_arn=model.model_arn)}
endpoint.endpoint_config_name = "sdk3-two"
endpoint.update()
endpoint.wait_for_status("InService", poll=1, timeout=60)
endpoint.refresh()
seen["after"] = endpoint.endpoint_config_name
seen["instances"] = endpoint.production_variants[0].current_instance_count
seen["again"] = answer(first)
seen["all"] = [found.endpoint_name for found in Endpoint.get_all(name_contains="sdk3")]
seen["got"] = Model.get(model_name="sdk3").primary_container.model_data_url
endpoint.delete()
endpoint.wait_for_delete(poll=1, timeout=60)
for made in (*configs, model):
    made.delete()
seen["left"] = [found.model_name for found in Model.get_all(name_contains="sdk3")]
Path(told).write_text(json.dumps(seen, default=str))
