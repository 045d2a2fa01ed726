"""Ground floor: the one table that gives each error of `core/errors.py` a status and a code, per door.

An error is found by its class or the nearest of its ancestors, so a new one needs no new wiring.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flatshare.core import errors


@dataclass(frozen=True, slots=True)
class Fault:
    """What a caller of an AWS API sees."""

    status: int
    code: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One error at the three doors; a door that cannot meet it falls back to that of its ancestor."""

    control: Fault | None = None
    runtime: Fault | None = None
    container: int | None = None


def _both(status: int, code: str) -> _Row:
    """The same at the control plane and at the runtime."""
    return _Row(Fault(status, code), Fault(status, code))


_INTERNAL = Fault(500, "InternalFailure")
_VALIDATION_CONTROL = Fault(400, "ValidationException")
_VALIDATION_RUNTIME = Fault(400, "ValidationError")
_MODEL_ERROR = Fault(424, "ModelError")
_UNAVAILABLE = Fault(503, "ServiceUnavailable")

_TABLE: Mapping[type[BaseException], _Row] = {
    errors.BadInput: _Row(Fault(400, "SerializationException"), _VALIDATION_RUNTIME, 400),
    errors.ValidationFailed: _Row(control=_VALIDATION_CONTROL),
    errors.UnknownOperation: _Row(control=Fault(400, "UnknownOperationException")),
    errors.Unauthenticated: _both(403, "IncompleteSignature"),
    errors.MissingCredentials: _both(403, "MissingAuthenticationToken"),
    errors.UnknownKey: _both(403, "UnrecognizedClientException"),
    errors.SignatureMismatch: _both(403, "SignatureDoesNotMatch"),
    errors.RequestExpired: _both(403, "RequestExpired"),
    errors.AccessDenied: _both(403, "AccessDeniedException"),
    errors.UnknownEndpoint: _Row(_VALIDATION_CONTROL, _VALIDATION_RUNTIME),
    errors.UnknownVariant: _Row(_VALIDATION_CONTROL, _VALIDATION_RUNTIME),
    errors.UnknownTarget: _Row(runtime=_VALIDATION_RUNTIME, container=404),
    errors.NotResident: _Row(container=404),
    errors.AlreadyLoaded: _Row(container=409),
    errors.BadPackage: _Row(runtime=_MODEL_ERROR, container=400),
    errors.Overloaded: _Row(_UNAVAILABLE, _UNAVAILABLE, 503),
    errors.ModelNotReady: _Row(runtime=Fault(429, "ModelNotReadyException"), container=503),
    errors.OutOfMemory: _Row(runtime=_UNAVAILABLE, container=507),
    errors.NeverFits: _Row(runtime=_MODEL_ERROR),
    errors.QuotaExceeded: _Row(control=Fault(400, "ResourceLimitExceeded")),
    errors.StoreUnavailable: _Row(runtime=Fault(530, "InternalDependencyException"), container=503),
    errors.DiskFull: _Row(runtime=_UNAVAILABLE, container=507),
    errors.InstanceGone: _Row(runtime=_UNAVAILABLE),
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


def _rows(error: BaseException) -> list[_Row]:
    return [_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE]
