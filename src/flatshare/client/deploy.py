"""Put a model behind an endpoint by the calls that a SageMaker deployment makes: create what is missing, copy the artifact, call it."""

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from botocore.exceptions import ClientError

from flatshare.core.errors import BadInput

ROLE = "arn:aws:iam::000000000000:role/flatshare"
IMAGE = "flatshare/multi-model:latest"
_MOVING = {"Creating", "Updating", "SystemUpdating", "RollingBack"}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look, and how long. A local endpoint is in service after half a second."""

    delay_s: float = 0.1
    attempts: int = 1200

    @property
    def waiter(self) -> dict[str, float]:
        """As boto3's waiters take it."""
        return {"Delay": self.delay_s, "MaxAttempts": self.attempts}


DEFAULT_PACE = Pace()


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """What `ensure_endpoint` is to bring about."""

    name: str
    prefix: str
    """Where its models lie: `file:///folder/`, `s3://bucket/prefix/`."""
    instance_type: str = "ml.local"
    instance_count: int = 1
    image: str = IMAGE
    role: str = ROLE
    pace: Pace = DEFAULT_PACE


def ensure_endpoint(sagemaker: Any, plan: EndpointPlan) -> bool:
    """Create model, endpoint configuration and endpoint under one name and wait until it is in service.

    False if it was there already. An endpoint that failed to start can only be deleted, so it is made anew. Others may do the same
    at the same time: whoever comes second waits for the first one's endpoint.
    """
    status = _endpoint_status(sagemaker, plan.name)
    if status == "Failed":
        remove_endpoint(sagemaker, plan.name, plan.pace)
    elif status is not None:
        if status in _MOVING:
            sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=plan.name, WaiterConfig=plan.pace.waiter)
        return False
    container = {"Image": plan.image, "Mode": "MultiModel", "ModelDataUrl": plan.prefix}
    _create(sagemaker.create_model, ModelName=plan.name, PrimaryContainer=container, ExecutionRoleArn=plan.role)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": plan.name,
        "InstanceType": plan.instance_type,
        "InitialInstanceCount": plan.instance_count,
    }
    _create(sagemaker.create_endpoint_config, EndpointConfigName=plan.name, ProductionVariants=[variant])
    _create(sagemaker.create_endpoint, EndpointName=plan.name, EndpointConfigName=plan.name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=plan.name, WaiterConfig=plan.pace.waiter)
    return True


def remove_endpoint(sagemaker: Any, name: str, pace: Pace = DEFAULT_PACE) -> None:
    """Delete endpoint, configuration and model of one name, and wait until the endpoint is gone. The artifacts stay."""
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=pace.waiter)
    sagemaker.delete_endpoint_config(EndpointConfigName=name)
    sagemaker.delete_model(ModelName=name)


def endpoint_prefix(sagemaker: Any, name: str) -> str | None:
    """Where the models of an existing endpoint lie; None if there is no such endpoint."""
    if _endpoint_status(sagemaker, name) is None:
        return None
    config = sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
    variant = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]
    return str(sagemaker.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"]["ModelDataUrl"])


def is_in_place(artifact: Path, prefix: str, target: str) -> bool:
    """Whether prefix + target holds the very same bytes already."""
    place = Path(prefix.removeprefix("file://")) / target
    if not prefix.startswith("file://") or artifact.is_dir() != place.is_dir() or not place.exists():
        return False
    names = _files(artifact)
    return names == _files(place) and all(filecmp.cmp(artifact / name, place / name, shallow=False) for name in names)


def _files(artifact: Path) -> list[Path]:
    files = artifact.rglob("*") if artifact.is_dir() else [artifact]
    return sorted(path.relative_to(artifact) for path in files if path.is_file())


def copy_artifact(artifact: Path, prefix: str, target: str) -> Path:
    """Copy a checkpoint directory or archive to prefix + target, all at once: a reader sees the old one or the new one.

    Raises BadInput for a target that does not lie below the prefix, or would take the place of other models.
    """
    if not prefix.startswith("file://"):
        raise BadInput(
            f"the endpoint's models lie at {prefix}: copy the artifact there with your store's own tools (aws s3 cp --recursive)"
        )
    if not target or target.startswith("/") or any(part in {"", ".", ".."} for part in target.split("/")):
        raise BadInput(f"target '{target}' must be a plain path below the endpoint's prefix, such as acme/query")
    place = Path(prefix.removeprefix("file://")) / target
    if place.is_dir() and not (place / "config.json").exists():
        raise BadInput(f"{place} is a folder of other models: choose another target")
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.{uuid4().hex}")
    if artifact.is_dir():
        shutil.copytree(artifact, fresh)
    else:
        shutil.copy2(artifact, fresh)
    if place.is_dir():
        old = place.with_name(f".{place.name}.{uuid4().hex}")
        place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old)
    else:
        fresh.replace(place)
    return place


def _endpoint_status(sagemaker: Any, name: str) -> str | None:
    """None if there is no such endpoint."""
    try:
        return str(sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationException" and "Could not find" in error.response["Error"]["Message"]:
            return None
        raise


def _create(call: Any, **members: Any) -> None:
    """An earlier try that was interrupted may have made it already."""
    try:
        call(**members)
    except ClientError as error:
        if "already existing" not in error.response["Error"]["Message"]:
            raise
