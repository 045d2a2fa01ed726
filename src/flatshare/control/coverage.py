"""What of AWS's API is served, as a page of the docs: `python -m flatshare.control.coverage` prints it, `make docs` writes it.

What is refused is read from the code that refuses, operations from the table that serves them, and what AWS has from botocore's model.
Only what no code says (that a member is kept without effect, that an operation does more or less) is said here. A test compares.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from botocore.model import StructureShape

from flatshare.control.app import OPERATIONS
from flatshare.control.configs import CONFIG_REFUSALS, VARIANT_REFUSALS
from flatshare.control.models import CONTAINER_REFUSALS, MODEL_REFUSALS
from flatshare.wire.aws_json import load_service
from flatshare.wire.sagemaker import FOREIGN, FORWARDED, OTHER_ROADS

_INSTANCE = "instances are processes of the machines that flatshare runs on"
_LISTS = (
    "`SortBy`, `SortOrder`, `NextToken`, `MaxResults`, `NameContains` and the filters by time work as on AWS. Ten items a page by default."
)


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure of the API and what becomes of each of its members. What is in neither table is supported."""

    name: str
    refused: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)


STRUCTURES = (
    Structure(
        "CreateModelInput",
        MODEL_REFUSALS,
        {
            "ExecutionRoleArn": "models are read with the server's own credentials; may be left out",
            "VpcConfig": f"{_INSTANCE}, in its network",
            "InferenceExecutionConfig": "Serial is kept; Direct is refused, for there is one container",
        },
    ),
    Structure(
        "ContainerDefinition",
        CONTAINER_REFUSALS,
        {
            "Image": "told as DeployedImages; the engine is flatshare's own",
            "ImageConfig": "no image is pulled",
            "Environment": "the engine reads none of it",
            "ContainerHostname": "there is one container",
        },
    ),
    Structure(
        "CreateEndpointConfigInput",
        CONFIG_REFUSALS,
        {
            "KmsKeyId": "encrypt the disk below the data folder",
            "ExecutionRoleArn": "as in CreateModel",
            "VpcConfig": "as in CreateModel",
            "MetricsConfig": "told by DescribeEndpoint; metrics are always at /metrics, as of the moment",
            "DataCaptureConfig": "kept if EnableCapture is false, and refused if it is true: requests are not recorded",
        },
    ),
    Structure(
        "ProductionVariant",
        {**VARIANT_REFUSALS, "ManagedInstanceScaling": "as on AWS, for endpoints without inference components."},
        {
            "InstanceType": "any of AWS's, or one that begins with ml.local; every instance gets an equal share of the machine's memory",
            "VolumeSizeInGB": "the disk is that of --data, bounded by --disk",
            "ModelDataDownloadTimeoutInSeconds": "an import takes as long as it takes",
            "ContainerStartupHealthCheckTimeoutInSeconds": "an instance has 60 s to start",
            "VariantInstanceProvisionTimeoutInSeconds": "as above",
            "RoutingConfig": "told by DescribeEndpoint; requests always go to the instance that holds the model, unless it is busy",
            "InferenceAmiVersion": _INSTANCE,
        },
    ),
    Structure("AutoRollbackConfig", {"Alarms": "there are no CloudWatch alarms yet; what does not start is rolled back in any case."}),
    Structure("RollingUpdatePolicy", {}, {"RollbackMaximumBatchSize": "a rolling update is rolled back in one batch"}),
    Structure("DesiredWeightAndCapacity", {"ServerlessUpdateConfig": "a multi-model endpoint runs on instances."}),
)

DIFFERENCES: Mapping[str, str] = {
    "CreateModel": "One container with `Mode=MultiModel`. `ModelDataUrl` may also be `gs://`, `az://` or `file:///`.",
    "CreateEndpointConfig": "Shadow variants also for multi-model endpoints: one, beside one production variant.",
    "CreateEndpoint": "An endpoint whose instances do not start is `Failed`, with the end of the instance's log as `FailureReason`.",
    "UpdateEndpoint": "`DeploymentConfig` is carried out with its waits and its time limit: all at once, canary, linear, rolling. "
    "A failure of the new instances to start rolls back: `Updating`, `RollingBack`, `InService` with a `FailureReason`.",
    "UpdateEndpointWeightsAndCapacities": "Any number of variants at once, shadow variants too. `DesiredInstanceCount` is at least 1.",
    "DescribeEndpoint": "A server that does not lead (several over one database) counts no current instances.",
    "DeleteEndpoint": "",
    "ListModels": _LISTS,
    "ListEndpointConfigs": _LISTS,
    "ListEndpoints": f"{_LISTS} So does `StatusEquals`.",
    "DeleteModel": "Allowed while endpoints use it: they have copied what they need.",
    "DeleteEndpointConfig": "Allowed while endpoints use it: they have copied what they need.",
    "ListTags": "Always one page: no resource has more than 50 tags.",
}
_RUNTIME_MEMBERS: Mapping[str, str] = {
    "TargetContainerHostname": "x-amzn-sagemaker-target-container-hostname",
    "InferenceComponentName": "x-amzn-sagemaker-inference-component",
    "EnableExplanations": "x-amzn-sagemaker-enable-explanations",
}
_RUNTIME_WITHOUT_EFFECT = {"PrefixAwareId"}
_REFUSED_ROADS = {"InvokeEndpointAsync": "async-invocations"}
_STREAMED = "for models that write; AWS has no TargetModel there: the header `X-Amzn-SageMaker-Target-Model` names it, an extension of ours"


def render() -> str:
    """The page, in Markdown."""
    return "\n".join([*_head(), *_operations(), *_structures(), *_runtime(), *_rest()]) + "\n"


def misnamed() -> dict[str, set[str]]:
    """Members that a table here names and botocore's model has not, per structure: a misspelling, or something that AWS took away."""
    strange = {structure.name: {*structure.refused, *structure.without_effect} - _members(structure.name) for structure in STRUCTURES}
    return {name: members for name, members in strange.items() if members}


def _head() -> Iterator[str]:
    yield "# What of AWS's API is served"
    yield ""
    yield "Written by `make docs` from the code that serves and refuses, and from botocore's service models: do not edit it by hand."
    yield ""
    yield "*Refused* means `ValidationException` with a sentence that says why and what to do: nothing that would change what a caller"
    yield "gets is ignored in silence. *Without effect* means checked by AWS's rules, kept and told again, but not acted upon."


def _operations() -> Iterator[str]:
    yield from ("", "## sagemaker", "", "| operation | required | optional | differences from AWS |", "|---|---|---|---|")
    for name in OPERATIONS:
        shape = _input("sagemaker", name)
        required = [member for member in shape.members if member in shape.required_members]
        refused = _refused(shape.name)
        optional = [member for member in shape.members if member not in {*required, *refused}]
        yield f"| {name} | {_codes(required)} | {_codes(optional)} | {DIFFERENCES.get(name, '') or '-'} |"
    yield ""
    yield "Any other operation, of SageMaker and of other services, is answered as AWS answers an unknown one: in JSON, with status 400"
    yield "and `UnknownOperationException`."


def _structures() -> Iterator[str]:
    for structure in STRUCTURES:
        rows = [f"| `{name}` | refused | {_sentence(reason)} |" for name, reason in structure.refused.items()]
        rows += [f"| `{name}` | without effect | {_sentence(reason)} |" for name, reason in structure.without_effect.items()]
        yield from ("", f"### {structure.name}", "", "| member | | why |", "|---|---|---|", *rows)


def _runtime() -> Iterator[str]:
    yield from ("", "## sagemaker-runtime", "", "| operation | member | | |", "|---|---|---|---|")
    shape = _input("sagemaker-runtime", "InvokeEndpoint")
    for member in shape.members:
        header = _RUNTIME_MEMBERS.get(member)
        if header is not None:
            yield f"| InvokeEndpoint | `{member}` | refused | an endpoint {_sentence(FOREIGN[header.encode()])} |"
        elif member not in _RUNTIME_WITHOUT_EFFECT:
            location = shape.members[member].serialization.get("name", "").lower().encode()
            note = "passed on to the container" if location in FORWARDED else ""
            yield f"| InvokeEndpoint | `{member}` | supported | {note or '-'} |"
    yield f"| InvokeEndpointWithResponseStream | | supported | {_STREAMED} |"
    for operation, road in _REFUSED_ROADS.items():
        yield f"| {operation} | | refused | a multi-model endpoint {_sentence(OTHER_ROADS[road])} |"


def _rest() -> Iterator[str]:
    yield from ("", "## Other services", "")
    yield "The codec (`wire/aws_codec.py`) reads and writes Application Auto Scaling (JSON 1.1) and CloudWatch (JSON 1.0, query,"
    yield "rpc-v2-cbor) too, driven by the same models; their operations are not served yet."


def _refused(structure_name: str) -> Mapping[str, str]:
    return next((structure.refused for structure in STRUCTURES if structure.name == structure_name), {})


def _input(service: str, operation: str) -> StructureShape:
    shape = load_service(service).operation_model(operation).input_shape
    assert shape is not None, f"{operation} has no input. This is a bug."
    return shape


def _members(structure_name: str) -> set[str]:
    shape = load_service("sagemaker").shape_for(structure_name)
    assert isinstance(shape, StructureShape), f"{structure_name} is no structure. This is a bug."
    return set(shape.members)


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _sentence(text: str) -> str:
    return text.rstrip(".")


if __name__ == "__main__":
    print(render(), end="")
