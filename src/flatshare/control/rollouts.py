"""Step 2 of 4 on a deployment's path: DeploymentConfig, checked by the rules that AWS's model cannot say.

Whatever it asks for, the cut-over here is blue/green and all at once, when every new instance answers; a fleet that does not start
is rolled back. `docs/api-coverage.md` says so. The configuration is kept, and told as LastDeploymentConfig.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params


@dataclass(frozen=True, slots=True)
class _Share:
    """Which part of a fleet one step may take."""

    low_percent: int
    high_percent: int


_STEP_OF_TYPE = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
_SHARES: Mapping[str, _Share] = {"CanarySize": _Share(1, 50), "LinearStepSize": _Share(10, 50), "MaximumBatchSize": _Share(5, 50)}


def checked_deployment_config(params: Params) -> Params | None:
    """The call's DeploymentConfig, or None."""
    config: Params | None = params.get("DeploymentConfig")
    if config is None:
        return None
    if "BlueGreenUpdatePolicy" in config and "RollingUpdatePolicy" in config:
        raise ValidationFailed("DeploymentConfig has a BlueGreenUpdatePolicy and a RollingUpdatePolicy: give one of them.")
    routing = config.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    needed = _STEP_OF_TYPE.get(routing.get("Type", ""))
    if needed is not None and needed not in routing:
        raise ValidationFailed(f"TrafficRoutingConfiguration.Type {routing['Type']} needs {needed}: give it, or choose ALL_AT_ONCE.")
    for steps in (routing, config.get("RollingUpdatePolicy", {})):
        for name, share in _SHARES.items():
            if name in steps:
                _check_size(name, steps[name], share)
    return config


def _check_size(name: str, size: Params, share: _Share) -> None:
    if size["Type"] == "CAPACITY_PERCENT" and not share.low_percent <= size["Value"] <= share.high_percent:
        raise ValidationFailed(f"{name} of {size['Value']} CAPACITY_PERCENT must be between {share.low_percent} and {share.high_percent}.")
