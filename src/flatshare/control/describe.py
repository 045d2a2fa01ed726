"""Step 2 of 4 on a deployment's path: an endpoint as DescribeEndpoint and ListEndpoints show it."""

from collections.abc import Mapping

from flatshare.control.desk import Desk
from flatshare.control.listing import list_query, page_of
from flatshare.control.state import Endpoint
from flatshare.core.ids import VariantName
from flatshare.policy.diff import Deployment, DesiredEndpoint, Slot, Status, Variant
from flatshare.wire.aws_shapes import Params

_VARIANT_STATUS = {
    Status.CREATING: "Creating",
    Status.UPDATING: "Updating",
    Status.ROLLING_BACK: "Updating",
    Status.DELETING: "Deleting",
}


def describe_endpoint(desk: Desk, params: Params) -> Params:
    endpoint = desk.endpoint(params["EndpointName"])
    desired = endpoint.desired
    shown = desired.active or desired.target
    assert shown is not None, f"{desired.name} has no deployment. This is a bug."
    return {
        "EndpointName": desired.name,
        "EndpointArn": desk.arns.endpoint(desired.name),
        "EndpointConfigName": shown.config_name,
        "ProductionVariants": [_summary(desk, endpoint, shown, variant) for variant in shown.variants],
        "ShadowProductionVariants": [_summary(desk, endpoint, shown, variant) for variant in shown.shadows] or None,
        "DataCaptureConfig": _capture(shown),
        "MetricsConfig": shown.settings.get("MetricsConfig"),
        "EndpointStatus": desired.status.value,
        "FailureReason": endpoint.failure_reason,
        "CreationTime": endpoint.created_s,
        "LastModifiedTime": endpoint.modified_s,
        "LastDeploymentConfig": endpoint.deployment_config,
        "PendingDeploymentSummary": _pending(desk, endpoint),
    }


def list_endpoints(desk: Desk, params: Params) -> Params:
    query = list_query(params)
    page = page_of(desk.rows.endpoint_page(query), query)
    summaries = [
        {
            "EndpointName": item.name,
            "EndpointArn": desk.arns.endpoint(item.name),
            "CreationTime": item.created_s,
            "LastModifiedTime": item.modified_s,
            "EndpointStatus": item.status,
        }
        for item in page.items
    ]
    return {"Endpoints": summaries, "NextToken": page.next_token}


def _summary(desk: Desk, endpoint: Endpoint, deployment: Deployment, variant: Variant) -> Params:
    """ProductionVariantSummary: what is, beside what is wanted."""
    wanted = _renumbered(endpoint.desired, deployment).get(variant.name, variant)
    return {
        "VariantName": variant.name,
        "DeployedImages": _images(endpoint, variant),
        "CurrentWeight": variant.weight,
        "DesiredWeight": wanted.weight,
        "CurrentInstanceCount": desk.ready_counts.get(Slot(endpoint.desired.name, deployment.id, variant.name), 0),
        "DesiredInstanceCount": wanted.count,
        "VariantStatus": _variant_status(endpoint),
        "RoutingConfig": {"RoutingStrategy": variant.routing_strategy},
    }


def _pending(desk: Desk, endpoint: Endpoint) -> Params | None:
    """PendingDeploymentSummary: only while another configuration is on its way in."""
    desired = endpoint.desired
    target = desired.target
    is_new = target is not None and (desired.active is None or desired.active.id != target.id)
    if target is None or not is_new or desired.status not in {Status.CREATING, Status.UPDATING}:
        return None
    variants, shadows = (
        [_summary(desk, endpoint, target, v) | {"InstanceType": v.instance_type} for v in listed]
        for listed in (target.variants, target.shadows)
    )
    return {
        "EndpointConfigName": target.config_name,
        "ProductionVariants": variants,
        "ShadowProductionVariants": shadows or None,
        "StartTime": endpoint.modified_s,
    }


def _renumbered(desired: DesiredEndpoint, deployment: Deployment) -> Mapping[VariantName, Variant]:
    """The variants with the numbers of a change of weights and capacities under way."""
    target = desired.target
    return {variant.name: variant for variant in target.all_variants} if target and target.id == deployment.id else {}


def _capture(deployment: Deployment) -> Params | None:
    """DataCaptureConfigSummary: nothing is ever recorded, for only configurations that say so are admitted."""
    config = deployment.settings.get("DataCaptureConfig")
    if config is None:
        return None
    return {
        "EnableCapture": False,
        "CaptureStatus": "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),  # the model requires it, so clients look for it
    }


def _images(endpoint: Endpoint, variant: Variant) -> list[Params] | None:
    if variant.image is None:
        return None
    return [{"SpecifiedImage": variant.image, "ResolvedImage": variant.image, "ResolutionTime": endpoint.created_s}]


def _variant_status(endpoint: Endpoint) -> list[Params] | None:
    """A settled variant has none."""
    shown = _VARIANT_STATUS.get(endpoint.desired.status)
    if shown is None:
        return None
    if endpoint.desired.status is Status.UPDATING and endpoint.desired.target and endpoint.desired.target.progress.step:
        shown = "Baking"  # some of the traffic has moved, and its wait is on
    message = {"StatusMessage": endpoint.failure_reason} if endpoint.failure_reason else {}
    return [{"Status": shown, **message, "StartTime": endpoint.modified_s}]
