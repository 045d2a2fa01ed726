"""What a SageMaker call asks to do, to what: the question that is put to the caller's grants."""

from typing import Any

import orjson

from flatshare.core.access import Ask, Resource
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.wire.http import Request
from flatshare.wire.sagemaker import Invocation

INVOKE = "sagemaker:InvokeEndpoint"
_PREFIXES = {"SageMaker": "sagemaker", "Flatshare": "flatshare"}
_NAMING = {"EndpointName": "endpoint", "EndpointConfigName": "endpoint-config", "ModelName": "model"}
_VARIANTS = ("ProductionVariants", "ShadowProductionVariants")
_MAX_NAME = 200


def of_invocation(call: Invocation) -> Ask:
    return Ask(INVOKE, (Resource("endpoint", call.endpoint),), call.target or "")


def of_model(action: str, endpoint: EndpointName, target: TargetModel) -> Ask:
    """A call of the Open Inference Protocol about one model. Whoever may invoke it may also see what it takes and gives."""
    return Ask(action, (Resource("endpoint", endpoint),), target)


def of_control_call(request: Request) -> Ask:
    """Every resource that the body names, those that a variant refers to as well. A body that cannot be read names none."""
    prefix, _, operation = request.header("x-amz-target").partition(".")
    action = f"{_PREFIXES.get(prefix, prefix)}:{operation}"[:_MAX_NAME]
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return Ask(action)
    if not isinstance(body, dict):
        return Ask(action)
    model = body.get("Model")  # of our own calls: which model's versions
    return Ask(action, tuple(_resources(body)), model if isinstance(model, str) else None)


def is_mutation(request: Request) -> bool:
    """Whether a control call changes anything."""
    return not request.header("x-amz-target").partition(".")[2].startswith(("Describe", "List"))


def _resources(body: dict[str, Any]) -> list[Resource]:
    found = [Resource(kind, body[member]) for member, kind in _NAMING.items() if isinstance(body.get(member), str)]
    for variants in (body.get(name) for name in _VARIANTS):
        members = [variant for variant in variants if isinstance(variant, dict)] if isinstance(variants, list) else []
        found += [Resource("model", member["ModelName"]) for member in members if isinstance(member.get("ModelName"), str)]
    if isinstance(body.get("ResourceArn"), str):
        found.append(_of_arn(body["ResourceArn"]))
    return found


def _of_arn(arn: str) -> Resource:
    """`arn:aws:sagemaker:REGION:ACCOUNT:KIND/NAME`. What is no such thing is asked for as it stands."""
    kind, _, name = arn.split(":", 5)[-1].partition("/")
    return Resource(kind, name) if name else Resource("resource", arn)
