"""Step 2 of 4 on a deployment's path: CreateModel and its kin. A model here is a prefix below which target models lie."""

from flatshare.control.desk import Desk, as_tags, refuse_members
from flatshare.control.listing import list_query, page_of
from flatshare.control.state import Definition
from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

MODEL_REFUSALS = {
    "EnableNetworkIsolation": "instances are processes of this machine and share its network. Leave it out or set it to false.",
}
CONTAINER_REFUSALS = {
    "ModelDataSource": "give the prefix of your models as ModelDataUrl.",
    "AdditionalModelDataSources": "give the prefix of your models as ModelDataUrl.",
    "ModelPackageName": "give the prefix of your models as ModelDataUrl.",
    "InferenceSpecificationName": "it belongs to model packages; give the prefix of your models as ModelDataUrl.",
    "ContainerMetricsConfig": "metrics of an instance are at its /metrics. Leave it out.",
}
_SUPPORTED = "flatshare hosts multi-model containers: give one PrimaryContainer with Mode MultiModel and a ModelDataUrl"


def create_model(desk: Desk, params: Params) -> Params:
    name = params["ModelName"]
    arn = desk.arns.model(name)
    container = _container(params)
    refuse_members(params, MODEL_REFUSALS, "")
    if params.get("InferenceExecutionConfig", {}).get("Mode") == "Direct":
        raise ValidationFailed(f"InferenceExecutionConfig.Mode Direct addresses one of several containers. {_SUPPORTED}.")
    _require_multi_model(container)
    tags = as_tags(params)
    if desk.rows.models.find(name):
        raise ValidationFailed(f'Cannot create already existing model "{arn}".')
    desk.rows.models.add(Definition(name, desk.now_s, {key: value for key, value in params.items() if key != "Tags"}))
    desk.rows.replace_tags(arn, tags)
    return {"ModelArn": arn}


def describe_model(desk: Desk, params: Params) -> Params:
    model = desk.model(params["ModelName"])
    return {**model.params, "ModelArn": desk.arns.model(model.name), "CreationTime": model.created_s}


def list_models(desk: Desk, params: Params) -> Params:
    query = list_query(params)
    page = page_of(desk.rows.models.page(query), query)
    models = [{"ModelName": m.name, "ModelArn": desk.arns.model(m.name), "CreationTime": m.created_s} for m in page.items]
    return {"Models": models, "NextToken": page.next_token}


def delete_model(desk: Desk, params: Params) -> Params:
    """An endpoint that uses it goes on: it has copied what it needs."""
    model = desk.model(params["ModelName"])
    desk.rows.models.remove(model.name)
    desk.rows.replace_tags(desk.arns.model(model.name), {})
    return {}


def container_of(model: Definition) -> Params:
    """The model's one container."""
    return _container(dict(model.params))


def _container(params: Params) -> Params:
    containers: list[Params] = params.get("Containers", [])
    if "PrimaryContainer" in params:
        containers = [*containers, params["PrimaryContainer"]]
    if len(containers) != 1:
        raise ValidationFailed(f"A model has exactly one container here, and {len(containers)} were given: {_SUPPORTED}.")
    return containers[0]


def _require_multi_model(container: Params) -> None:
    refuse_members(container, CONTAINER_REFUSALS, "ContainerDefinition.")
    if container.get("Mode") != "MultiModel":
        raise ValidationFailed(
            f"ContainerDefinition.Mode is {container.get('Mode', 'SingleModel')}, which is not supported yet: {_SUPPORTED}."
        )
    url = container.get("ModelDataUrl")
    if url is None:
        raise ValidationFailed(f"ContainerDefinition.ModelDataUrl is missing: {_SUPPORTED}, such as s3://bucket/models/.")
    if url.startswith("https:"):
        raise ValidationFailed(f"ModelDataUrl {url} is an https address: write it as s3://bucket/prefix/, gs://, az:// or file:///folder/.")
    if container.get("MultiModelConfig", {}).get("ModelCacheSetting") == "Disabled":
        raise ValidationFailed(
            "MultiModelConfig.ModelCacheSetting Disabled is not supported by flatshare: models are always cached. Leave it out."
        )
