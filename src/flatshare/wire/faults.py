"""Ground floor: the one table that gives each error of `core/errors.py` a status and a code, per door.

An error is found by its class or the nearest of its ancestors, so a new one needs no new wiring.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flatshare.core import errors


@dataclass(frozen=True, slots=True)
class Fault:
    """What a caller of an AWS API sees."""

    status: int
    code: str
    retry_after_s: int | None = field(default=None, compare=False)
    """After how long another try may be worth it."""


@dataclass(frozen=True, slots=True)
class V2Fault:
    """What a caller of the Open Inference Protocol sees: an HTTP status, and the name of a gRPC status code."""

    status: int
    grpc: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One error at the four doors; a door that cannot meet it falls back to that of its ancestor."""

    control: Fault | None = None
    runtime: Fault | None = None
    container: int | None = None
    v2: V2Fault | None = None


def _both(status: int, code: str, v2: V2Fault | None = None) -> _Row:
    """The same at the control plane and at the runtime."""
    return _Row(Fault(status, code), Fault(status, code), v2=v2)


_INTERNAL = Fault(500, "InternalFailure")
_VALIDATION_CONTROL = Fault(400, "ValidationException")
_VALIDATION_RUNTIME = Fault(400, "ValidationError")
_MODEL_ERROR = Fault(424, "ModelError")
_UNAVAILABLE = Fault(503, "ServiceUnavailable", retry_after_s=1)
_THROTTLED = Fault(429, "ThrottlingException", retry_after_s=1)
"""boto3 knows the code as one to retry with growing pauses, in its standard and in its legacy mode; 429 alone it does not."""
_V2_INTERNAL = V2Fault(500, "INTERNAL")
_V2_BAD = V2Fault(400, "INVALID_ARGUMENT")
_V2_UNKNOWN = V2Fault(404, "NOT_FOUND")
_V2_UNSERVABLE = V2Fault(400, "FAILED_PRECONDITION")
_V2_AGAIN = V2Fault(503, "UNAVAILABLE")
_V2_LATE = V2Fault(504, "DEADLINE_EXCEEDED")

_TABLE: Mapping[type[BaseException], _Row] = {
    errors.BadInput: _Row(Fault(400, "SerializationException"), _VALIDATION_RUNTIME, 400, _V2_BAD),
    errors.BodyTooLarge: _Row(v2=V2Fault(413, "RESOURCE_EXHAUSTED")),
    errors.Unsupported: _Row(v2=V2Fault(501, "UNIMPLEMENTED")),
    errors.ValidationFailed: _Row(control=_VALIDATION_CONTROL),
    errors.UnknownOperation: _Row(control=Fault(400, "UnknownOperationException")),
    errors.Unauthenticated: _both(403, "IncompleteSignature", V2Fault(401, "UNAUTHENTICATED")),
    errors.MissingCredentials: _both(403, "MissingAuthenticationToken"),
    errors.UnknownKey: _both(403, "UnrecognizedClientException"),
    errors.SignatureMismatch: _both(403, "SignatureDoesNotMatch"),
    errors.RequestExpired: _both(403, "RequestExpired"),
    errors.AccessDenied: _both(403, "AccessDeniedException", V2Fault(403, "PERMISSION_DENIED")),
    errors.UnknownEndpoint: _Row(_VALIDATION_CONTROL, _VALIDATION_RUNTIME, v2=_V2_UNKNOWN),
    errors.UnknownVariant: _Row(_VALIDATION_CONTROL, _VALIDATION_RUNTIME, v2=_V2_UNKNOWN),
    errors.UnknownTarget: _Row(Fault(400, "ResourceNotFound"), _VALIDATION_RUNTIME, 404, _V2_UNKNOWN),
    errors.NotResident: _Row(container=404, v2=_V2_UNKNOWN),
    errors.AlreadyLoaded: _Row(container=409, v2=V2Fault(409, "ALREADY_EXISTS")),
    errors.BadPackage: _Row(runtime=_MODEL_ERROR, container=400, v2=_V2_UNSERVABLE),
    errors.Overloaded: _Row(_UNAVAILABLE, _UNAVAILABLE, 503, V2Fault(429, "RESOURCE_EXHAUSTED")),
    errors.OverQuota: _Row(_THROTTLED, _THROTTLED, 429),
    errors.TooLate: _Row(v2=_V2_LATE),
    errors.ModelNotReady: _Row(runtime=Fault(429, "ModelNotReadyException"), container=503, v2=_V2_AGAIN),
    errors.OutOfMemory: _Row(runtime=_UNAVAILABLE, container=507, v2=_V2_AGAIN),
    errors.NeverFits: _Row(runtime=_MODEL_ERROR, v2=_V2_UNSERVABLE),
    errors.ReleaseConflict: _Row(control=Fault(400, "ConflictException")),
    errors.QuotaExceeded: _Row(control=Fault(400, "ResourceLimitExceeded")),
    errors.StoreUnavailable: _Row(_UNAVAILABLE, Fault(530, "InternalDependencyException"), container=503, v2=_V2_AGAIN),
    errors.DiskFull: _Row(runtime=_UNAVAILABLE, container=507, v2=_V2_AGAIN),
    errors.InstanceGone: _Row(runtime=_UNAVAILABLE, v2=_V2_AGAIN),
    errors.InstanceHung: _Row(v2=_V2_LATE),
    errors.ModelFailed: _Row(runtime=_MODEL_ERROR, container=400, v2=_V2_INTERNAL),  # 400: as Triton answers in its SageMaker mode
    errors.WorkerDied: _Row(runtime=_MODEL_ERROR, container=500),
    errors.Quarantined: _Row(runtime=_MODEL_ERROR, container=503, v2=_V2_AGAIN),
    errors.TooSlow: _Row(runtime=_MODEL_ERROR, container=500, v2=_V2_LATE),
}


def control_fault(error: BaseException) -> Fault:
    """What the control plane answers."""
    return next((row.control for row in _rows(error) if row.control), _INTERNAL)


def runtime_fault(error: BaseException) -> Fault:
    """What InvokeEndpoint answers."""
    return next((row.runtime for row in _rows(error) if row.runtime), _INTERNAL)


def container_status(error: BaseException) -> int:
    """What an instance answers in the container contract."""
    return next((row.container for row in _rows(error) if row.container), 500)


def v2_fault(error: BaseException) -> V2Fault:
    """What the Open Inference Protocol answers, over HTTP and over gRPC."""
    return next((row.v2 for row in _rows(error) if row.v2), _V2_INTERNAL)


def _rows(error: BaseException) -> list[_Row]:
    return [_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE]
