"""Everything that can go wrong, named after the state that was met.

    FlatshareError
    ├─ BadInput                 the caller's request cannot be understood
    │  ├─ BodyTooLarge
    │  ├─ ValidationFailed      a control call breaks a rule of the API
    │  ├─ UnknownOperation      no such call is served here
    │  ├─ AmbiguousModel        a bare model name that several endpoints know
    │  └─ Unsupported           a part of a protocol that is not served here
    ├─ Unauthenticated          nobody knows who calls
    │  ├─ MissingCredentials    the request does not say
    │  ├─ IncompleteSignature   what says so cannot be read
    │  ├─ UnknownKey            no such access key, or it was revoked
    │  ├─ SignatureMismatch     altered on the way, another secret, another region
    │  └─ RequestExpired        signed too long ago, or seen before
    ├─ AccessDenied             the caller is known, and may not do that
    ├─ UnknownEndpoint · UnknownVariant · UnknownTarget · NotResident · AlreadyLoaded
    ├─ BadPackage               the artifact is not a model that we can serve
    │  ├─ UnsafeArchive         it would escape its folder, or swell beyond the limits
    │  └─ UnsupportedModel      well-formed, but of a kind that this version does not know
    ├─ ModelFailed              the model's own code raised, or answered what it may not
    │  ├─ WorkerDied            the process that ran it died: a crash, or it took too long
    │  └─ Quarantined           it did that too often, or to its whole instance, and is left alone for a while
    ├─ Overloaded               too many wait already
    │  ├─ OverQuota             too many of this tenant wait already
    │  └─ TooLate               the answer would come after its deadline
    ├─ ModelNotReady            still loading when the hold time was over
    ├─ OutOfMemory              does not fit now, and waiting did not help
    │  └─ NeverFits             would not fit an empty instance
    ├─ QuotaExceeded            the fleet has no room for another instance
    ├─ StoreUnavailable         the artifact's store failed or is out of reach
    ├─ DiskFull
    ├─ PortInUse
    ├─ IncompatibleState        the database is one that this version cannot use
    ├─ InstanceGone             the instance died or did not answer
    │  └─ InstanceHung          it lives, and answers nothing any more
    ├─ BadLayout                a layout, or what it is applied to, does not make a package
    ├─ ReleaseConflict          what was asked of a model's versions contradicts what they are
    ├─ CallFailed               a client's call was answered with an error that has no better name
    ├─ TooSlow                  the model did not answer within the hold time
    └─ Abandoned                the caller has left

Which status and code each gets is decided in one table, `wire/faults.py`.
"""


class FlatshareError(Exception):
    """Base of the tree. `str(error)` is a sentence for the caller that says what to do."""

    can_retry = False


class BadInput(FlatshareError):
    """The request cannot be understood as it is."""


class BodyTooLarge(BadInput):
    """More bytes than the contract admits."""


class ValidationFailed(BadInput):
    """A control call breaks a rule of the API."""


class UnknownOperation(BadInput):
    """No such operation is served here."""


class AmbiguousModel(BadInput):
    """Several endpoints know a model of this name, or none of them does."""


class Unsupported(BadInput):
    """A part of the protocol that is not served here. Calling again will not help."""


class Unauthenticated(FlatshareError):
    """The request does not prove who sent it."""


class MissingCredentials(Unauthenticated):
    """Neither a signature nor a token."""


class IncompleteSignature(Unauthenticated):
    """A signature or a token that cannot be read, or does not cover what it must."""


class UnknownKey(Unauthenticated):
    """No such access key, or it was revoked."""


class SignatureMismatch(Unauthenticated):
    """The signature is not that of this request by this key."""


class RequestExpired(Unauthenticated):
    """Signed too long ago, or too far in the future, or used before."""


class AccessDenied(FlatshareError):
    """The caller is known, and none of its grants allows what it asks."""


class UnknownEndpoint(FlatshareError):
    """No endpoint has this name."""


class UnknownVariant(FlatshareError):
    """The endpoint has no such production variant."""


class UnknownTarget(FlatshareError):
    """Nothing lies at prefix + target model, or it may not be read."""


class NotResident(FlatshareError):
    """The instance does not hold this model and was not told where to find it."""


class AlreadyLoaded(FlatshareError):
    """The model is loaded already."""


class BadPackage(FlatshareError):
    """The artifact is not a model that can be served."""


class UnsafeArchive(BadPackage):
    """The archive escapes its folder, carries links or devices, or swells beyond the limits."""


class UnsupportedModel(BadPackage):
    """Well-formed, but of a kind that this version does not know."""


class UnpublishedCode(BadPackage):
    """The package brings code that no operator of this server has published."""


class ModelFailed(FlatshareError):
    """The model's own code raised or answered what its config does not admit, or its container answered an error of its own."""


class WorkerDied(ModelFailed):
    """The process that ran the model crashed, was killed or hung; another has taken its place."""


class Quarantined(ModelFailed):
    """The model has brought down its worker or its instance several times: it is refused until a time that the sentence says."""


class Overloaded(FlatshareError):
    """Too many requests wait already."""

    can_retry = True


class OverQuota(Overloaded):
    """The tenant has as many requests or loads waiting as it may."""


class RateExceeded(OverQuota):
    """The access key makes more calls a second than it may."""


class TooLate(Overloaded):
    """The answer would come, or has come, after the deadline that the caller set."""


class ModelNotReady(FlatshareError):
    """The model was still being fetched or loaded when the hold time was over."""

    can_retry = True


class OutOfMemory(FlatshareError):
    """There is no room now: every resident model that could make room is in use."""

    can_retry = True


class NeverFits(OutOfMemory):
    """The model would not fit an empty instance."""

    can_retry = False


class QuotaExceeded(FlatshareError):
    """The fleet has no room for what was asked."""


class StoreUnavailable(FlatshareError):
    """The artifact's store failed, is out of reach, or changed while it was read."""

    can_retry = True


class DiskFull(FlatshareError):
    """The instance's disk cannot take the artifact."""

    can_retry = True


class PortInUse(FlatshareError):
    """Another program listens where the server was to listen."""


class IncompatibleState(FlatshareError):
    """The control plane's database is one that this version cannot use."""


class InstanceGone(FlatshareError):
    """The instance died, or did not answer in time."""

    can_retry = True


class InstanceHung(InstanceGone):
    """The instance lives and answers nothing any more. The caller has waited long enough: no other is tried."""


class BadLayout(FlatshareError):
    """A layout is wrong in itself, or does not go with the files and variables it was given."""


class ReleaseConflict(FlatshareError):
    """A version or alias is not what the caller takes it for, or somebody changed it meanwhile."""


class CallFailed(FlatshareError):
    """A client's call failed at the other end, in its own words."""


class TooSlow(FlatshareError):
    """The model did not answer within the hold time."""


class Abandoned(FlatshareError):
    """The caller has left, so the work was given up. Nobody hears this."""
