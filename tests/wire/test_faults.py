import pytest

from flatshare.core import errors
from flatshare.wire.faults import Fault, container_status, control_fault, runtime_fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.BadInput(), Fault(400, "SerializationException")),
        (errors.ValidationFailed(), Fault(400, "ValidationException")),
        (errors.UnknownEndpoint(), Fault(400, "ValidationException")),
        (errors.UnknownOperation(), Fault(400, "UnknownOperationException")),
        (errors.AccessDenied(), Fault(403, "AccessDeniedException")),
        (errors.SignatureMismatch(), Fault(403, "SignatureDoesNotMatch")),
        (errors.QuotaExceeded(), Fault(400, "ResourceLimitExceeded")),
        (errors.StoreUnavailable(), Fault(503, "ServiceUnavailable")),
        (errors.DiskFull(), Fault(500, "InternalFailure")),
        (ValueError(), Fault(500, "InternalFailure")),
    ],
)
def test_the_control_plane_s_codes(error: Exception, fault: Fault) -> None:
    assert control_fault(error) == fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.BadInput(), Fault(400, "ValidationError")),
        (errors.BodyTooLarge(), Fault(400, "ValidationError")),
        (errors.MissingCredentials(), Fault(403, "MissingAuthenticationToken")),
        (errors.IncompleteSignature(), Fault(403, "IncompleteSignature")),
        (errors.UnknownKey(), Fault(403, "UnrecognizedClientException")),
        (errors.SignatureMismatch(), Fault(403, "SignatureDoesNotMatch")),
        (errors.RequestExpired(), Fault(403, "RequestExpired")),
        (errors.AccessDenied(), Fault(403, "AccessDeniedException")),
        (errors.UnknownEndpoint(), Fault(400, "ValidationError")),
        (errors.UnknownTarget(), Fault(400, "ValidationError")),
        (errors.UnknownVariant(), Fault(400, "ValidationError")),
        (errors.BadPackage(), Fault(424, "ModelError")),
        (errors.UnsafeArchive(), Fault(424, "ModelError")),
        (errors.UnsupportedModel(), Fault(424, "ModelError")),
        (errors.ModelNotReady(), Fault(429, "ModelNotReadyException")),
        (errors.Overloaded(), Fault(503, "ServiceUnavailable")),
        (errors.OverQuota(), Fault(429, "ThrottlingException")),
        (errors.TooLate(), Fault(503, "ServiceUnavailable")),
        (errors.OutOfMemory(), Fault(503, "ServiceUnavailable")),
        (errors.NeverFits(), Fault(424, "ModelError")),
        (errors.StoreUnavailable(), Fault(530, "InternalDependencyException")),
        (errors.DiskFull(), Fault(503, "ServiceUnavailable")),
        (errors.InstanceGone(), Fault(503, "ServiceUnavailable")),
        (RuntimeError(), Fault(500, "InternalFailure")),
    ],
)
def test_the_runtime_s_codes(error: Exception, fault: Fault) -> None:
    assert runtime_fault(error) == fault


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotResident(), 404),
        (errors.AlreadyLoaded(), 409),
        (errors.OutOfMemory(), 507),
        (errors.NeverFits(), 507),
        (errors.DiskFull(), 507),
        (errors.BadInput(), 400),
        (errors.UnsafeArchive(), 400),
        (errors.UnknownTarget(), 404),
        (errors.Overloaded(), 503),
        (errors.OverQuota(), 429),
        (errors.StoreUnavailable(), 503),
        (RuntimeError(), 500),
    ],
)
def test_the_container_contract_s_statuses(error: Exception, status: int) -> None:
    assert container_status(error) == status


def test_a_new_error_is_answered_as_its_ancestor() -> None:
    class Fresh(errors.UnsafeArchive):
        pass

    assert runtime_fault(Fresh()) == runtime_fault(errors.BadPackage())


def test_whoever_may_try_again_is_told_when() -> None:
    assert runtime_fault(errors.OverQuota()).retry_after_s == 1
    assert runtime_fault(errors.Overloaded()).retry_after_s == 1
    assert runtime_fault(errors.BadInput()).retry_after_s is None
