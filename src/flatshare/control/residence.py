"""Step 2 of 4 on a deployment's path, in all-resident mode: what would not stay in memory is refused before it begins."""

import asyncio
from collections.abc import Callable

from flatshare.control.desk import Desk, Residence
from flatshare.control.models import container_of
from flatshare.control.state import Rows, State
from flatshare.core.errors import QuotaExceeded, StoreUnavailable, UnknownTarget, ValidationFailed
from flatshare.core.ids import EndpointName
from flatshare.core.spec import ModelSize
from flatshare.policy.diff import Deployment, DesiredEndpoint, Status
from flatshare.policy.residence import Crew, Machine, refusal

Below = Callable[[str], tuple[ModelSize, ...]]
"""The models below a prefix. Asks the store, so it is not called on the event loop. Raises StoreUnavailable or UnknownTarget."""
DEPLOYMENTS = frozenset({"CreateEndpoint", "UpdateEndpoint", "UpdateEndpointWeightsAndCapacities"})


async def look_below(state: State, config_name: str | None, below: Below, memory_bytes: int) -> Residence:
    """The models of all endpoints, and of the configuration that another one is to have. Raises ValidationFailed."""
    prefixes = await state.look(lambda rows: _prefixes(rows, config_name))
    try:
        return Residence(memory_bytes, {prefix: await asyncio.to_thread(below, prefix) for prefix in sorted(prefixes)})
    except (StoreUnavailable, UnknownTarget) as error:
        raise ValidationFailed(f"All-resident mode looks first which models there are: {error}") from error


def require_residence(desk: Desk, name: EndpointName, target: Deployment) -> None:
    """As with the quota, what is to stay counts: while an update runs, both fleets share the memory, and may lack some."""
    if desk.residence is None:
        return
    desired = [endpoint.desired for endpoint in desk.rows.endpoints()]
    before = _crews(desk.residence, {endpoint.name: _deployment(endpoint) for endpoint in desired})
    after = _crews(desk.residence, {endpoint.name: _deployment(endpoint) for endpoint in desired} | {name: target})
    reason = refusal(name, before, after, Machine(desk.residence.memory_bytes, desk.max_instances))
    if reason is not None:
        raise QuotaExceeded(reason)


def _prefixes(rows: Rows, config_name: str | None) -> set[str]:
    deployments = (_deployment(endpoint.desired) for endpoint in rows.endpoints())
    found = {variant.prefix for deployment in deployments if deployment for variant in deployment.all_variants}
    config = rows.configs.find(config_name) if config_name else None
    variants = [*config.params["ProductionVariants"], *config.params.get("ShadowProductionVariants", [])] if config else []
    models = (rows.models.find(variant["ModelName"]) for variant in variants)
    return found | {container_of(model)["ModelDataUrl"] for model in models if model}


def _deployment(endpoint: DesiredEndpoint) -> Deployment | None:
    """What it is to be; None if it has no instances."""
    return None if endpoint.status in {Status.FAILED, Status.DELETING} else endpoint.target or endpoint.active


def _crews(residence: Residence, deployments: dict[EndpointName, Deployment | None]) -> tuple[Crew, ...]:
    return tuple(
        Crew(name, variant.name, variant.count, _models_below(residence, variant.prefix))
        for name, deployment in deployments.items()
        if deployment is not None
        for variant in deployment.all_variants
    )


def _models_below(residence: Residence, prefix: str) -> tuple[ModelSize, ...]:
    if prefix not in residence.below:
        raise ValidationFailed(f"Endpoints changed while the models below '{prefix}' were looked at: call again.")
    return residence.below[prefix]
