"""Step 2 of 4 on a deployment's path: CreateEndpointConfig and its kin."""

from flatshare.control.desk import Desk, as_tags, refuse_members
from flatshare.control.listing import Listed, list_page
from flatshare.control.state import Definition
from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

_INSTEAD = "give InstanceType and InitialInstanceCount."
_CONFIG_REFUSALS = {
    "ShadowProductionVariants": "requests are not copied to shadow variants. Give the variant as one of ProductionVariants.",
    "AsyncInferenceConfig": "requests are answered synchronously. Leave it out.",
    "ExplainerConfig": "no explainer is attached. Leave it out.",
    "MetricsConfig": "metrics of all models are always published, at /metrics. Leave it out.",
    "CrossRegionTrafficConfig": "there is one region. Leave it out.",
    "EnableNetworkIsolation": "instances are processes of this machine and share its network. Leave it out or set it to false.",
}
_VARIANT_REFUSALS = {
    "ServerlessConfig": f"a multi-model endpoint runs on instances; {_INSTEAD}",
    "InstancePools": f"every instance is of one type; {_INSTEAD}",
    "AcceleratorType": "Elastic Inference is no more. Leave it out.",
    "CoreDumpConfig": "core dumps are your operating system's to collect. Leave it out.",
    "EnableSSMAccess": "instances are processes of this machine. Leave it out or set it to false.",
    "CapacityReservationConfig": "capacity is this machine's. Leave it out.",
    "AcceleratorPartitionLayouts": "accelerators are not partitioned. Leave it out.",
}


def create_endpoint_config(desk: Desk, params: Params) -> Params:
    name = params["EndpointConfigName"]
    arn = desk.arns.config(name)
    refuse_members(params, _CONFIG_REFUSALS, "")
    if params.get("DataCaptureConfig", {"EnableCapture": False}).get("EnableCapture") is not False:
        raise ValidationFailed(
            "DataCaptureConfig is not supported by flatshare: requests are not recorded. Leave it out or set EnableCapture to false."
        )
    tags = as_tags(params)
    variants = [_checked_variant(desk, variant) for variant in params["ProductionVariants"]]
    names = [variant["VariantName"] for variant in variants]
    for variant_name in names:
        if names.count(variant_name) > 1:
            raise ValidationFailed(f'The variant name "{variant_name}" was non-unique within the request.')
    if desk.rows.configs.find(name):
        raise ValidationFailed(f'Cannot create already existing endpoint configuration "{arn}".')
    kept = {key: value for key, value in params.items() if key != "Tags"} | {"ProductionVariants": variants}
    desk.rows.configs.add(Definition(name, desk.now_s, kept))
    desk.rows.replace_tags(arn, tags)
    return {"EndpointConfigArn": arn}


def describe_endpoint_config(desk: Desk, params: Params) -> Params:
    config = desk.config(params["EndpointConfigName"])
    return {**config.params, "EndpointConfigArn": desk.arns.config(config.name), "CreationTime": config.created_s}


def list_endpoint_configs(desk: Desk, params: Params) -> Params:
    page = list_page([Listed(config.name, config.created_s) for config in desk.rows.configs.all()], params)
    configs = [
        {"EndpointConfigName": c.name, "EndpointConfigArn": desk.arns.config(c.name), "CreationTime": c.created_s} for c in page.items
    ]
    return {"EndpointConfigs": configs, "NextToken": page.next_token}


def delete_endpoint_config(desk: Desk, params: Params) -> Params:
    """An endpoint that uses it goes on: it has copied what it needs."""
    config = desk.config(params["EndpointConfigName"])
    desk.rows.configs.remove(config.name)
    desk.rows.replace_tags(desk.arns.config(config.name), {})
    return {}


def _checked_variant(desk: Desk, variant: Params) -> Params:
    """The variant with AWS's defaults filled in."""
    where = f"ProductionVariant {variant['VariantName']}: "
    refuse_members(variant, _VARIANT_REFUSALS, where)
    for needed in ("ModelName", "InstanceType", "InitialInstanceCount"):
        if needed not in variant:
            raise ValidationFailed(f"{where}{needed} is missing: a variant needs a ModelName; {_INSTEAD}")
    desk.model(variant["ModelName"])
    if "ManagedInstanceScaling" in variant:
        raise ValidationFailed("ManagedInstanceScaling is only supported for inference component endpoints.")
    return {"InitialVariantWeight": 1.0, **variant}
