"""Step 2 of 4 on a deployment's path: CreateEndpoint and its kin. They edit desired state; the loop does the rest."""

import secrets
from collections.abc import Mapping
from dataclasses import replace

from flatshare.control.desk import Desk, as_tags
from flatshare.control.models import container_of
from flatshare.control.residence import require_residence
from flatshare.control.rollouts import checked_deployment_config
from flatshare.control.state import Definition, Endpoint
from flatshare.core.errors import QuotaExceeded, ValidationFailed
from flatshare.core.ids import EndpointName, VariantName
from flatshare.policy.diff import Deployment, DeploymentId, DesiredEndpoint, Status, Variant
from flatshare.policy.rollout import Progress
from flatshare.wire.aws_shapes import Params

_IN_PROGRESS = {Status.CREATING, Status.UPDATING, Status.ROLLING_BACK, Status.DELETING}
_REPEATED = ("DataCaptureConfig", "MetricsConfig")  # what DescribeEndpoint tells of the configuration


def create_endpoint(desk: Desk, params: Params) -> Params:
    name = EndpointName(params["EndpointName"])
    arn = desk.arns.endpoint(name)
    deployment_config = checked_deployment_config(params)
    tags = as_tags(params)
    if desk.rows.endpoint(name):
        raise ValidationFailed(f'Cannot create already existing endpoint "{arn}".')
    target = _resolved(desk, desk.config(params["EndpointConfigName"]))
    _require_room(desk, target, before=None)
    require_residence(desk, name, target)
    desired = DesiredEndpoint(name, revision=1, status=Status.CREATING, target=target)
    desk.rows.add_endpoint(Endpoint(desired, desk.now_s, desk.now_s, deployment_config=deployment_config))
    desk.rows.replace_tags(arn, tags)
    return {"EndpointArn": arn}


def update_endpoint(desk: Desk, params: Params) -> Params:
    """Another fleet takes over, as the DeploymentConfig says; by itself all at once, when every new instance is ready."""
    endpoint = _updatable(desk, params["EndpointName"])
    active = endpoint.desired.active
    assert active is not None, "an endpoint that can be updated has an active deployment. This is a bug."
    target = _resolved(desk, desk.config(params["EndpointConfigName"]))
    if params.get("RetainAllVariantProperties"):
        excluded = {entry["VariantPropertyType"] for entry in params.get("ExcludeRetainedVariantProperties", [])}
        target = _with_retained(target, active, excluded)
    target = replace(target, progress=Progress(began_s=desk.now_s))
    if not params.get("RetainDeploymentConfig"):
        endpoint = replace(endpoint, deployment_config=checked_deployment_config(params))
    _begin_update(desk, endpoint, target)
    return {"EndpointArn": desk.arns.endpoint(endpoint.desired.name)}


def update_endpoint_weights_and_capacities(desk: Desk, params: Params) -> Params:
    """The same deployment with other numbers, so that the instances that stay go on serving."""
    endpoint = _updatable(desk, params["EndpointName"])
    active = endpoint.desired.active
    assert active is not None, "an endpoint that can be updated has an active deployment. This is a bug."
    changes = _changes(params, active)

    def changed(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        return tuple(_changed(variant, changes.get(variant.name, {})) for variant in variants)

    _begin_update(desk, endpoint, replace(active, variants=changed(active.variants), shadows=changed(active.shadows)))
    return {"EndpointArn": desk.arns.endpoint(endpoint.desired.name)}


def delete_endpoint(desk: Desk, params: Params) -> Params:
    endpoint = _settled(desk, params["EndpointName"])
    _save(desk, endpoint, replace(endpoint.desired, status=Status.DELETING))
    desk.rows.replace_tags(desk.arns.endpoint(endpoint.desired.name), {})
    return {}


def _settled(desk: Desk, name: str) -> Endpoint:
    endpoint = desk.endpoint(name)
    if endpoint.desired.status in _IN_PROGRESS:
        raise ValidationFailed(f'Cannot update in-progress endpoint "{desk.arns.endpoint(name)}".')
    return endpoint


def _updatable(desk: Desk, name: str) -> Endpoint:
    endpoint = _settled(desk, name)
    if endpoint.desired.status is Status.FAILED:
        raise ValidationFailed(f'Cannot update failed endpoint "{desk.arns.endpoint(name)}": delete it and create it again.')
    return endpoint


def _begin_update(desk: Desk, endpoint: Endpoint, target: Deployment) -> None:
    _require_room(desk, target, before=endpoint.desired.active)
    require_residence(desk, endpoint.desired.name, target)
    desired = replace(endpoint.desired, status=Status.UPDATING, target=target)
    _save(desk, replace(endpoint, failure_reason=None), desired)


def _save(desk: Desk, endpoint: Endpoint, desired: DesiredEndpoint) -> None:
    desk.rows.save_endpoint(replace(endpoint, desired=desired, modified_s=desk.now_s))


def _resolved(desk: Desk, config: Definition) -> Deployment:
    """The configuration with its models looked up, so that neither needs to exist from here on."""
    variants = tuple(_resolved_variant(desk, variant) for variant in config.params["ProductionVariants"])
    shadows = tuple(_resolved_variant(desk, variant) for variant in config.params.get("ShadowProductionVariants", []))
    settings = {name: config.params[name] for name in _REPEATED if name in config.params}
    return Deployment(DeploymentId(secrets.token_hex(8)), config.name, variants, shadows, settings)


def _resolved_variant(desk: Desk, variant: Params) -> Variant:
    container = container_of(desk.model(variant["ModelName"]))
    return Variant(
        name=VariantName(variant["VariantName"]),
        count=variant["InitialInstanceCount"],
        weight=variant["InitialVariantWeight"],
        prefix=container["ModelDataUrl"],
        model_name=variant["ModelName"],
        image=container.get("Image"),
        instance_type=variant["InstanceType"],
        routing_strategy=variant.get("RoutingConfig", {}).get("RoutingStrategy"),
    )


def _with_retained(target: Deployment, active: Deployment, excluded: set[str]) -> Deployment:
    """RetainAllVariantProperties: counts and weights of variants that go on existing stay as they are, and so does data capture."""
    before = {variant.name: variant for variant in active.all_variants}

    def retained(variant: Variant) -> Variant:
        old = before.get(variant.name, variant)
        return replace(
            variant,
            count=variant.count if "DesiredInstanceCount" in excluded else old.count,
            weight=variant.weight if "DesiredWeight" in excluded else old.weight,
        )

    settings = dict(target.settings)
    if "DataCaptureConfig" not in excluded and "DataCaptureConfig" in active.settings:
        settings["DataCaptureConfig"] = active.settings["DataCaptureConfig"]
    variants, shadows = (tuple(retained(variant) for variant in listed) for listed in (target.variants, target.shadows))
    return replace(target, variants=variants, shadows=shadows, settings=settings)


def _changes(params: Params, active: Deployment) -> Mapping[str, Params]:
    listed = params["DesiredWeightsAndCapacities"]
    changes = {change["VariantName"]: change for change in listed}
    names = [change["VariantName"] for change in listed]
    for name in changes:
        if names.count(name) > 1:
            raise ValidationFailed(f'The variant name "{name}" was non-unique within the request.')
    unknown = ", ".join(name for name in changes if name not in {variant.name for variant in active.all_variants})
    if unknown:
        raise ValidationFailed(f'The variant name(s) "{unknown}" is/are not present within endpoint configuration "{active.config_name}".')
    return changes


def _changed(variant: Variant, change: Params) -> Variant:
    if "ServerlessUpdateConfig" in change:
        raise ValidationFailed(f'The variant "{variant.name}" is not serverless: change its DesiredInstanceCount or DesiredWeight.')
    count = change.get("DesiredInstanceCount", variant.count)
    if count < 1:
        raise ValidationFailed(f'The variant "{variant.name}" needs a DesiredInstanceCount of at least 1: to stop it, delete the endpoint.')
    return replace(variant, count=count, weight=change.get("DesiredWeight", variant.weight))


def _require_room(desk: Desk, target: Deployment, *, before: Deployment | None) -> None:
    """The quota counts what is to stay. While an update runs both fleets, they share the same memory."""
    used = sum(_instance_count(endpoint.desired) for endpoint in desk.rows.endpoints())
    delta = target.instance_count - (before.instance_count if before else 0)
    limit = desk.max_instances
    if delta > 0 and used + delta > limit:
        raise QuotaExceeded(
            f"The account-level service limit '{target.variants[0].instance_type} for endpoint usage' is {limit} Instances, "
            f"with current utilization of {used} Instances and a request delta of {delta} Instances. "
            "Delete an endpoint that you no longer need, or start flatshare with a larger --max-instances."
        )


def _instance_count(desired: DesiredEndpoint) -> int:
    deployment = desired.target or desired.active
    if deployment is None or desired.status in {Status.FAILED, Status.DELETING}:
        return 0
    return deployment.instance_count
