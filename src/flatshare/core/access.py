"""Who calls, what it asks to do, and what it was granted."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grant:
    """These actions, on these endpoints, for these target models; patterns with `*` and `?`, as in IAM's StringLike."""

    actions: tuple[str, ...]
    endpoints: tuple[str, ...] = ("*",)
    """Names of endpoints; for control calls, of the models and configurations that they name, too."""
    target_models: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who is known. What no grant allows is denied."""

    name: str
    key_id: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A principal's key. The secret stays readable: verifying a signature takes the secret itself, as signing does."""

    principal: Principal
    secret: str = field(repr=False)
    created_s: float
    rate_rps: float | None = None
    """Calls that it may make a second, on all roads together; None for any number."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What an action is done to."""

    kind: str
    """endpoint · endpoint-config · model"""
    name: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that a caller wants to do, whichever road it came by."""

    action: str
    """`sagemaker:InvokeEndpoint`, `flatshare:GetStatus`, …"""
    resources: tuple[Resource, ...] = ()
    """None: it is about all there is, such as a list of everything; then only a grant for `*` allows it."""
    target_model: str | None = None
    """None: it is not about a target model. Empty: it is, and names none; then only a grant for `*` allows it."""
