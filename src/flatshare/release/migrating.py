"""From where models are served today: read an existing multi-model deployment, and make the same endpoints here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
from botocore.exceptions import ClientError

from flatshare.client.aws import sentence_of
from flatshare.core.errors import BadInput, BadPackage
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.package.generation.checkpoint import T5_TYPES
from flatshare.package.generation.importer import is_generating

_KEPT_OF_VARIANT = ("VariantName", "ModelName", "InstanceType", "InitialInstanceCount", "InitialVariantWeight", "RoutingConfig")
_DESCRIBED = {"EndpointArn": "endpoints", "EndpointConfigArn": "configs", "ModelArn": "models"}
_NAMES = {"endpoints": "EndpointName", "configs": "EndpointConfigName", "models": "ModelName"}
_KEPT_OF_CONTAINER = ("Image", "Mode", "ModelDataUrl", "Environment", "MultiModelConfig", "ContainerHostname")


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What SageMaker's describe calls say, by name: what a deployment is, as JSON that can be carried elsewhere."""

    endpoints: dict[str, dict[str, Any]] = {}
    configs: dict[str, dict[str, Any]] = {}
    models: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Moved:
    """One endpoint after the move, or why it was left."""

    endpoint: str
    prefixes: tuple[str, ...] = ()
    left: str = ""


def describe_all(sagemaker: Any) -> Found:
    """Every endpoint with its configuration and models, by list and describe calls only."""
    found = Found()
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for summary in page["Endpoints"]:
            endpoint = sagemaker.describe_endpoint(EndpointName=summary["EndpointName"])
            config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
            found.endpoints[endpoint["EndpointName"]] = endpoint
            found.configs[config["EndpointConfigName"]] = config
            for name in {variant["ModelName"] for variant in config["ProductionVariants"] if "ModelName" in variant}:
                found.models[name] = sagemaker.describe_model(ModelName=name)
    return found


def save(found: Found, file: Path) -> None:
    """As JSON, times as texts."""
    file.write_bytes(orjson.dumps(msgspec.to_builtins(found, builtin_types=(object,)), default=str, option=orjson.OPT_INDENT_2))


def load(files: Iterable[Path]) -> Found:
    """What `save` wrote, or what `aws sagemaker describe-endpoint`, `describe-endpoint-config` and `describe-model` print, a file each.

    Raises BadInput, also if a configuration or a model of an endpoint is missing.
    """
    found = Found()
    for file in files:
        fields = _object(file)
        kind = next((name for key, name in _DESCRIBED.items() if key in fields), None)
        if kind is not None:
            getattr(found, kind)[str(fields.get(_NAMES[kind]))] = fields
            continue
        try:
            saved = msgspec.convert(fields, Found)
        except msgspec.MsgspecError as error:
            raise _unknown(file, str(error)) from error
        for kind in _NAMES:
            getattr(found, kind).update(getattr(saved, kind))
    _require_whole(found)
    return found


def _require_whole(found: Found) -> None:
    """Every endpoint's configuration and models are there."""
    for name, endpoint in found.endpoints.items():
        config = found.configs.get(str(endpoint.get("EndpointConfigName")))
        if config is None:
            raise BadInput(f"the configuration '{endpoint.get('EndpointConfigName')}' of endpoint '{name}' is missing: add its description")
        for variant in config.get("ProductionVariants", ()):
            if "ModelName" in variant and variant["ModelName"] not in found.models:
                raise BadInput(f"model '{variant['ModelName']}' of endpoint '{name}' is missing: add its description")


def _object(file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise _unknown(file, str(error)) from error


def _unknown(file: Path, why: str) -> BadInput:
    return BadInput(f"'{file}' is not what 'flatshare import sagemaker --save' writes, nor a description by the AWS CLI: {why}")


def recreate(found: Found, sagemaker: Any, *, instance_count: int) -> Iterator[Moved]:
    """Make the multi-model endpoints here, under their names and over their prefixes. What is there already stays; nothing is copied."""
    for name, endpoint in found.endpoints.items():
        config = found.configs[endpoint["EndpointConfigName"]]
        variants = config["ProductionVariants"]
        models = [found.models.get(variant.get("ModelName", "")) for variant in variants]
        containers = [model.get("PrimaryContainer", {}) if model else {} for model in models]
        if not all(container.get("Mode") == "MultiModel" for container in containers):
            yield Moved(name, left="not every variant is a multi-model container: deploy its model as a package")
            continue
        try:
            for model, container in zip(models, containers, strict=True):
                assert model is not None, "a container came from nowhere. This is a bug."
                _once(
                    sagemaker.create_model,
                    ModelName=model["ModelName"],
                    PrimaryContainer=_only(container, _KEPT_OF_CONTAINER),
                    ExecutionRoleArn=model["ExecutionRoleArn"],
                )
            fitted = [_only(variant, _KEPT_OF_VARIANT) | {"InitialInstanceCount": instance_count} for variant in variants]
            _once(sagemaker.create_endpoint_config, EndpointConfigName=config["EndpointConfigName"], ProductionVariants=fitted)
            _once(sagemaker.create_endpoint, EndpointName=name, EndpointConfigName=config["EndpointConfigName"])
        except ClientError as error:
            yield Moved(name, left=sentence_of(error))
            continue
        yield Moved(name, tuple(container["ModelDataUrl"] for container in containers))


def layout_for(checkpoint: Path) -> str:
    """The shipped layout for a checkpoint that transformers saved. Raises BadPackage if config.json does not tell."""
    if not (checkpoint / "config.json").is_file() and any(checkpoint.glob("*.gguf")):
        return "gguf"
    try:
        config = msgspec.json.decode((checkpoint / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise BadPackage(f"'{checkpoint}' has no config.json that can be read: is it what save_pretrained() wrote?") from error
    if is_generating(checkpoint, StoreLimits()):
        return "autocomplete" if config.get("model_type") in T5_TYPES else "drafting"
    heads = [str(name) for name in config.get("architectures") or []]
    if (checkpoint / "modules.json").is_file() or any(name.endswith("Model") for name in heads):
        return _LAYOUTS[Task.EMBEDDING]
    if any(name.endswith("ForSequenceClassification") for name in heads):
        labels = config.get("id2label") or {}
        return _LAYOUTS[Task.RANKING if len(labels) == 1 or config.get("num_labels") == 1 else Task.CLASSIFICATION]
    raise BadPackage(
        f"no layout ships for {', '.join(heads) or 'a checkpoint that names no architecture'}: write one and use 'flatshare package'"
    )


_LAYOUTS = {Task.EMBEDDING: "encoder", Task.CLASSIFICATION: "classifier", Task.RANKING: "ranker"}


def _only(members: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: members[name] for name in names if name in members}


def _once(call: Any, **members: Any) -> None:
    try:
        call(**members)
    except ClientError as error:
        if "already existing" not in error.response["Error"]["Message"]:
            raise
