"""The guard: who calls, by signature or token, in each mode; and replays."""

import time
from pathlib import Path

import pytest

from flatshare.core.access import AccessKey, Ask, Grant, Resource
from flatshare.core.clock import ManualClock
from flatshare.core.errors import (
    AccessDenied,
    BodyTooLarge,
    IncompleteSignature,
    MissingCredentials,
    RateExceeded,
    RequestExpired,
    SignatureMismatch,
    UnknownKey,
)
from flatshare.core.settings import SecuritySettings
from flatshare.security.guard import ANYBODY, Guard, Road
from flatshare.security.keys import KeyFile
from flatshare.security.replay import GRACE_S, ReplayWindow
from flatshare.wire.http import TOO_LARGE, Request
from tests.wire.requests import arriving, signed

AWS, CHANGE, OURS = Road(), Road(is_mutation=True), Road(is_aws=False)


class House:
    """A guard, its clock, and one key."""

    def __init__(self, folder: Path, auth: str = "sigv4") -> None:
        self.clock = ManualClock(time.time())
        self.file = KeyFile(folder / "keys.json")
        self.key = self.file.create("acme", (Grant(("sagemaker:InvokeEndpoint",), ("e",), ("acme/*",)),), 0)
        settings = SecuritySettings(auth=auth, keys_file=self.file.path)
        self.guard = Guard(settings, self.clock, region="us-east-1", account="123456789012", max_body_bytes=1000)

    def signed(self, body: bytes = b"{}", key: AccessKey | None = None, **members: object) -> Request:
        key = key or self.key
        return signed("POST", "/", body, key=(key.principal.key_id, key.secret), **members)  # type: ignore[arg-type]  # as they come

    def bearing(self, token: str) -> Request:
        return arriving("GET", "http://h/metrics", {"Host": "h", "Authorization": token}, b"")

    @property
    def token(self) -> str:
        return f"{self.key.principal.key_id}.{self.key.secret}"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_signature_says_who_calls(house: House) -> None:
    assert house.guard.authenticate(house.signed(), AWS) == house.key.principal
    assert house.guard.authenticate(house.signed(), OURS) == house.key.principal


def test_the_signing_key_of_the_day_is_kept_and_forgotten_with_the_key(house: House) -> None:
    house.guard.authenticate(house.signed(), AWS)
    assert len(house.guard._signing_keys) == 1
    house.guard.authenticate(house.signed(b"x"), AWS)
    assert len(house.guard._signing_keys) == 1
    house.file.revoke(house.key.principal.key_id)
    house.clock.advance(1)
    with pytest.raises(UnknownKey):
        house.guard.authenticate(house.signed(), AWS)
    assert not house.guard._signing_keys


def test_an_unknown_key_and_a_wrong_secret_are_told_apart_as_aws_does(house: House) -> None:
    with pytest.raises(UnknownKey, match="The security token included in the request is invalid"):
        house.guard.authenticate(signed("POST", "/", b"{}", key=("FSKANOBODY", "x" * 40)), AWS)
    with pytest.raises(SignatureMismatch):
        house.guard.authenticate(signed("POST", "/", b"{}", key=(house.key.principal.key_id, "x" * 40)), AWS)


def test_a_token_says_who_calls_on_roads_that_are_not_aws_s(house: House) -> None:
    for token in (f"Bearer {house.token}", f"bearer {house.token}", f"BEARER  {house.token} "):
        assert house.guard.authenticate(house.bearing(token), OURS) == house.key.principal
    with pytest.raises(IncompleteSignature, match="to be signed"):
        house.guard.authenticate(house.bearing(f"Bearer {house.token}"), AWS)
    assert house.guard.holder(house.token) == house.key.principal


def test_where_tokens_are_admitted_everywhere_a_signature_is_too(tmp_path: Path) -> None:
    house = House(tmp_path, "bearer")
    assert house.guard.authenticate(house.bearing(f"Bearer {house.token}"), AWS) == house.key.principal
    assert house.guard.authenticate(house.signed(), AWS) == house.key.principal


@pytest.mark.parametrize(
    "spoil", [lambda t: t + "x", lambda t: t[:-1], lambda t: t.partition(".")[0], lambda t: "." + t, lambda t: "ä." + t]
)
def test_a_token_that_is_not_quite_the_one_is_refused(house: House, spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(UnknownKey):
        house.guard.holder(spoil(house.token))


@pytest.mark.parametrize("road", [AWS, OURS])
def test_without_credentials_nobody_comes_in(house: House, road: Road) -> None:
    with pytest.raises(MissingCredentials, match="Missing Authentication Token"):
        house.guard.authenticate(arriving("POST", "http://h/", {"Host": "h"}, b""), road)
    with pytest.raises(IncompleteSignature):
        house.guard.authenticate(house.bearing("Basic YTpi"), road)


def test_where_nobody_is_asked_everybody_may_do_everything(tmp_path: Path) -> None:
    guard = House(tmp_path, "none").guard
    assert guard.authenticate(arriving("POST", "http://h/", {}, b""), AWS) is ANYBODY
    guard.require(ANYBODY, Ask("sagemaker:DeleteEndpoint", (Resource("endpoint", "e"),)))


def test_a_body_that_was_too_large_to_keep_is_said_to_be(house: House) -> None:
    request = house.signed()
    request.headers[TOO_LARGE] = b"1"
    with pytest.raises(BodyTooLarge, match="1000 bytes"):
        house.guard.authenticate(request, AWS)


def test_a_denial_has_aws_s_sentence_and_the_reason(house: House) -> None:
    ask = Ask("sagemaker:InvokeEndpoint", (Resource("endpoint", "e"),), "other/x")
    house.guard.require(house.key.principal, Ask(ask.action, ask.resources, "acme/x"))
    with pytest.raises(AccessDenied) as denial:
        house.guard.require(house.key.principal, ask)
    assert str(denial.value) == (
        "User: arn:aws:iam::123456789012:user/acme is not authorized to perform: sagemaker:InvokeEndpoint on resource: "
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/e because no identity-based policy allows the "
        "sagemaker:InvokeEndpoint action for TargetModel 'other/x'"
    )
    with pytest.raises(AccessDenied, match=r"on resource: \* because"):
        house.guard.require(house.key.principal, Ask("sagemaker:ListModels"))


class TestReplay:
    def test_a_control_call_that_is_seen_again_later_is_refused(self, house: House) -> None:
        request = house.signed()
        house.guard.authenticate(request, CHANGE)
        house.clock.advance(GRACE_S)
        house.guard.authenticate(request, CHANGE)  # the client's own: signatures count in seconds
        house.clock.advance(1)
        with pytest.raises(RequestExpired, match="received before"):
            house.guard.authenticate(request, CHANGE)

    def test_what_changes_nothing_may_be_seen_again(self, house: House) -> None:
        request = house.signed()
        for _ in range(3):
            house.guard.authenticate(request, AWS)
            house.clock.advance(10)

    def test_a_forgery_does_not_use_up_the_signature_of_the_true_request(self, house: House) -> None:
        request, forged = house.signed(), house.signed()
        forged.body = b"x"
        with pytest.raises(SignatureMismatch):
            house.guard.authenticate(forged, CHANGE)
        house.clock.advance(10)
        house.guard.authenticate(request, CHANGE)

    def test_a_presigned_request_may_be_sent_again_while_it_lives(self, house: House) -> None:
        key = (house.key.principal.key_id, house.key.secret)
        request = signed("GET", "/", key=key, expires_s=60)
        for _ in range(3):
            house.guard.authenticate(request, CHANGE)
            house.clock.advance(10)

    def test_the_window_s_memory_is_bounded_and_lets_go_with_time(self) -> None:
        clock = ManualClock()
        window = ReplayWindow(clock, size=100)
        for number in range(1000):
            window.require_new(f"{number:064x}")
        assert len(window) == 100
        clock.advance(601)
        window.require_new("f" * 64)
        assert len(window) == 1


def test_a_key_with_a_rate_makes_so_many_calls_a_second_on_all_roads_together(tmp_path: Path) -> None:
    house = House(tmp_path, "bearer")
    slow = house.file.create("slow", (Grant(("*",)),), 0, rate_rps=2.0)
    house.clock.advance(1)  # the file is looked at again
    token = f"{slow.principal.key_id}.{slow.secret}"
    assert house.guard.authenticate(house.signed(key=slow), AWS) == slow.principal
    assert house.guard.holder(token) == slow.principal
    with pytest.raises(RateExceeded, match="Rate exceeded: the access key 'slow' may make 2 calls a second"):
        house.guard.authenticate(house.bearing(f"Bearer {token}"), OURS)
    assert house.guard.holder(house.token) == house.key.principal, "others are not held up"
    with pytest.raises(UnknownKey):
        house.guard.holder(f"{slow.principal.key_id}.wrong")
    house.clock.advance(0.5)
    assert house.guard.holder(token) == slow.principal
    with pytest.raises(RateExceeded):
        house.guard.holder(token)
