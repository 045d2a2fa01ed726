"""Every road asks here: who calls, and may it? One guard per server."""

import hmac
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from flatshare.core.access import AccessKey, Ask, Grant, Principal, Resource
from flatshare.core.clock import Clock
from flatshare.core.errors import AccessDenied, IncompleteSignature, MissingCredentials, RateExceeded, UnknownKey
from flatshare.core.settings import SecuritySettings
from flatshare.policy import access, rate
from flatshare.security.keys import KeyFile, KeyRing
from flatshare.security.replay import ReplayWindow
from flatshare.wire import sigv4
from flatshare.wire.http import Request, require_body_within

ANYBODY = Principal("anybody", "", (Grant(("*",)),))
"""Who calls where nobody is asked."""
_BEARER = "bearer "
_CACHED_KEYS = 4096


class Auth(Enum):
    """What a server asks of its callers."""

    NONE = "none"
    SIGV4 = "sigv4"
    """AWS's roads are signed, so that no secret travels; other roads take a bearer token, or are signed."""
    BEARER = "bearer"
    """Every road takes a bearer token, or is signed."""


@dataclass(frozen=True, slots=True)
class Road:
    """What is particular to the way by which a request came."""

    service: str = "sagemaker"
    """The service that its signature must be scoped to."""
    is_aws: bool = True
    is_mutation: bool = False


class Guard:
    """Used on one event loop. With `Auth.NONE` it knows everybody as `ANYBODY`, who may do everything."""

    def __init__(self, settings: SecuritySettings, clock: Clock, *, region: str, account: str, max_body_bytes: int) -> None:
        self.auth = Auth(settings.auth)
        self._clock = clock
        self._region = region
        self._account = account
        self._max_body_bytes = max_body_bytes
        self._signing_keys: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._keys = None if self.auth is Auth.NONE else KeyRing(KeyFile(settings.keys_file), clock, self._signing_keys.clear)
        self._replays = ReplayWindow(clock)
        self._buckets: dict[str, rate.Bucket] = {}
        """Of keys with a rate: as many as there are such keys."""

    @property
    def is_open(self) -> bool:
        """Nobody is asked who it is, and everybody may do everything."""
        return self._keys is None

    @property
    def key_count(self) -> int:
        return 0 if self._keys is None else self._keys.count

    def authenticate(self, request: Request, road: Road) -> Principal:
        """Who sent the request; a body that came in signed chunks is put together.

        Raises an Unauthenticated, BodyTooLarge, or RateExceeded.
        """
        if self._keys is None:
            return ANYBODY
        if sigv4.is_signed(request):
            return self._signer(request, road, self._keys)
        authorization = request.header("authorization")
        if not authorization:
            raise MissingCredentials("Missing Authentication Token")
        if not authorization[: len(_BEARER)].lower() == _BEARER:
            raise IncompleteSignature("the Authorization header is neither a signature (AWS4-HMAC-SHA256 …) nor a token (Bearer …)")
        if road.is_aws and self.auth is Auth.SIGV4:
            raise IncompleteSignature("calls of the SageMaker API are to be signed here; --auth bearer admits tokens for them too")
        return self.holder(authorization[len(_BEARER) :])

    def holder(self, token: str) -> Principal:
        """Whose bearer token `ID.SECRET` that is; for roads that are not HTTP, too. Raises UnknownKey or RateExceeded."""
        if self._keys is None:
            return ANYBODY
        key_id, _, secret = token.strip().partition(".")
        key = self._keys.key(key_id)
        if not hmac.compare_digest(secret.encode(), key.secret.encode()):
            raise UnknownKey("The security token included in the request is invalid.")
        return self._counted(key)

    def require(self, principal: Principal, ask: Ask) -> None:
        """Raises AccessDenied, in AWS's words."""
        verdict = access.decide(principal, ask)
        if not verdict.is_allowed:
            where = self._arn(ask.resources[0]) if ask.resources else "*"
            who = f"arn:aws:iam::{self._account}:user/{principal.name}"
            raise AccessDenied(f"User: {who} is not authorized to perform: {ask.action} on resource: {where} because {verdict.reason}")

    def _signer(self, request: Request, road: Road, keys: KeyRing) -> Principal:
        require_body_within(request, self._max_body_bytes)
        claim = sigv4.claim_of(request)
        key = keys.key(claim.key_id)
        sigv4.require_scope(claim, self._region, road.service)
        sigv4.require_fresh(claim, self._clock.wall_s())
        request.body = sigv4.verified_body(request, claim, self._signing_key(key.secret, claim))
        if road.is_mutation and claim.expires_s is None:
            self._replays.require_new(claim.signature)
        return self._counted(key)

    def _counted(self, key: AccessKey) -> Principal:
        """Once it is proved who calls, so that nobody spends another's calls."""
        name = key.principal.key_id
        if key.rate_rps is not None:
            taken = rate.take(self._buckets.get(name), key.rate_rps, self._clock.monotonic_s())
            self._buckets[name] = taken.bucket
            if not taken.is_allowed:
                raise RateExceeded(f"Rate exceeded: the access key '{key.principal.name}' may make {key.rate_rps:g} calls a second")
        return key.principal

    def _signing_key(self, secret: str, claim: sigv4.Claim) -> bytes:
        """Four rounds of HMAC are spared, for as long as the day and the key last. Region and service were checked: they are ours."""
        name = (claim.key_id, f"{claim.day}/{claim.service}")
        if name not in self._signing_keys:
            if len(self._signing_keys) >= _CACHED_KEYS:
                self._signing_keys.popitem(last=False)
            self._signing_keys[name] = sigv4.signing_key(secret, claim)
        return self._signing_keys[name]

    def _arn(self, resource: Resource) -> str:
        return f"arn:aws:sagemaker:{self._region}:{self._account}:{resource.kind}/{resource.name}"
