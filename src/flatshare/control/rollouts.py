"""Step 2 of 4 on a deployment's path: DeploymentConfig, checked by the rules that AWS's model cannot say, and read.

The configuration is kept, and told as LastDeploymentConfig; `policy/rollout.py` does what it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flatshare.core.errors import ValidationFailed
from flatshare.policy.rollout import Rollout, Size
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
    _check_alarms(config)
    _check_time(config)
    return config


def rollout_of(config: Params | None) -> Rollout:
    """What a configuration that was checked asks for."""
    config = config or {}
    rolling: Params = config.get("RollingUpdatePolicy", {})
    if rolling:
        size, timeout_s = _size(rolling["MaximumBatchSize"]), rolling.get("MaximumExecutionTimeoutInSeconds")
        return Rollout(size, is_rolling=True, wait_s=rolling["WaitIntervalInSeconds"], timeout_s=timeout_s)
    policy: Params = config.get("BlueGreenUpdatePolicy", {})
    routing: Params = policy.get("TrafficRoutingConfiguration", {})
    member = _STEP_OF_TYPE.get(routing.get("Type", ""))
    return Rollout(
        None if member is None else _size(routing[member]),
        is_canary=member == "CanarySize",
        wait_s=routing.get("WaitIntervalInSeconds", 0),
        termination_wait_s=policy.get("TerminationWaitInSeconds", 0),
        timeout_s=policy.get("MaximumExecutionTimeoutInSeconds"),
    )


def _size(size: Params) -> Size:
    return Size(size["Value"], is_percent=size["Type"] == "CAPACITY_PERCENT")


def _check_alarms(config: Params) -> None:
    alarms = [alarm.get("AlarmName", "") for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", [])]
    if alarms:
        raise ValidationFailed(
            f"AutoRollbackConfiguration names the alarms {', '.join(alarms)}: flatshare has no CloudWatch alarms yet, so nothing would "
            "roll back on them. Leave AutoRollbackConfiguration out; instances that do not start are rolled back in any case."
        )


def _check_time(config: Params) -> None:
    """A deployment that can only end in its timeout is refused. What counts on the fleet's size is not known here."""
    rollout = rollout_of(config)
    percent = rollout.size is None or rollout.size.is_percent
    steps = len(rollout.shares(1)) if percent else 1
    needed_s = steps * rollout.wait_s + rollout.termination_wait_s
    if rollout.timeout_s is not None and needed_s >= rollout.timeout_s:
        raise ValidationFailed(
            f"MaximumExecutionTimeoutInSeconds of {rollout.timeout_s:g} must be more than all waits together, which are {needed_s:g} s."
        )


def _check_size(name: str, size: Params, share: _Share) -> None:
    if size["Type"] == "CAPACITY_PERCENT" and not share.low_percent <= size["Value"] <= share.high_percent:
        raise ValidationFailed(f"{name} of {size['Value']} CAPACITY_PERCENT must be between {share.low_percent} and {share.high_percent}.")
