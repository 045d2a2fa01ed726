"""Step 2 of 4 on a deployment's path: CreateEndpointConfig and its kin."""

from collections.abc import Mapping

from flatshare.control.desk import Desk, as_tags, refuse_members
from flatshare.control.listing import list_query, page_of
from flatshare.control.state import Definition
from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

_VARIANT_LISTS = ("ProductionVariants", "ShadowProductionVariants")
_INSTEAD = "give InstanceType and InitialInstanceCount."
CONFIG_REFUSALS = {
    "AsyncInferenceConfig": "requests are answered synchronously. Leave it out.",
    "ExplainerConfig": "no explainer is attached. Leave it out.",
    "CrossRegionTrafficConfig": "there is one region. Leave it out.",
    "EnableNetworkIsolation": "instances are processes of this machine and share its network. Leave it out or set it to false.",
}
VARIANT_REFUSALS = {
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
    refuse_members(params, CONFIG_REFUSALS, "")
    if params.get("DataCaptureConfig", {"EnableCapture": False}).get("EnableCapture") is not False:
        raise ValidationFailed(
            "DataCaptureConfig is not supported by flatshare: requests are not recorded. Leave it out or set EnableCapture to false."
        )
    tags = as_tags(params)
    listed = {kind: [_checked_variant(desk, variant) for variant in params[kind]] for kind in _VARIANT_LISTS if kind in params}
    _check_together(listed)
    if desk.rows.configs.find(name):
        raise ValidationFailed(f'Cannot create already existing endpoint configuration "{arn}".')
    kept = {key: value for key, value in params.items() if key != "Tags"} | listed
    desk.rows.configs.add(Definition(name, desk.now_s, kept))
    desk.rows.replace_tags(arn, tags)
    return {"EndpointConfigArn": arn}


def describe_endpoint_config(desk: Desk, params: Params) -> Params:
    config = desk.config(params["EndpointConfigName"])
    return {**config.params, "EndpointConfigArn": desk.arns.config(config.name), "CreationTime": config.created_s}


def list_endpoint_configs(desk: Desk, params: Params) -> Params:
    query = list_query(params)
    page = page_of(desk.rows.configs.page(query), query)
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


def _check_together(listed: Mapping[str, list[Params]]) -> None:
    names = [variant["VariantName"] for variants in listed.values() for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValidationFailed(f'The variant name "{name}" was non-unique within the request.')
    counts = [len(listed.get(kind, ())) for kind in _VARIANT_LISTS]
    if counts[1] and counts != [1, 1]:
        raise ValidationFailed(
            f"A shadow variant needs exactly one production variant, and there may be one shadow variant: "
            f"{counts[0]} production and {counts[1]} shadow variants were given."
        )


def _checked_variant(desk: Desk, variant: Params) -> Params:
    """The variant with AWS's defaults filled in."""
    where = f"ProductionVariant {variant['VariantName']}: "
    refuse_members(variant, VARIANT_REFUSALS, where)
    for needed in ("ModelName", "InstanceType", "InitialInstanceCount"):
        if needed not in variant:
            raise ValidationFailed(f"{where}{needed} is missing: a variant needs a ModelName; {_INSTEAD}")
    desk.model(variant["ModelName"])
    if "ManagedInstanceScaling" in variant:
        raise ValidationFailed("ManagedInstanceScaling is only supported for inference component endpoints.")
    return {"InitialVariantWeight": 1.0, **variant}
