"""Who may do what: deny by default, patterns as IAM's StringLike."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.access import Ask, Grant, Principal, Resource
from flatshare.policy.access import decide, is_like

INVOKE = "sagemaker:InvokeEndpoint"
TENANT = Grant((INVOKE,), ("embeddings",), ("acme/*",))


def may(ask: Ask, *grants: Grant) -> bool:
    return decide(Principal("p", "K", grants), ask).is_allowed


def invoke(target: str, endpoint: str = "embeddings") -> Ask:
    return Ask(INVOKE, (Resource("endpoint", endpoint),), target)


@pytest.mark.parametrize("target", ["acme/query", "acme/deep/down/query.tar.gz", "acme/a b", "/acme/query", "acme/query/"])
def test_a_tenants_key_reaches_its_models(target: str) -> None:
    assert may(invoke(target), TENANT)


@pytest.mark.parametrize("target", ["", "acme", "acme/", "other/query", "acmes/query", "Acme/query", "x/acme/query", "acme\\query", "//"])
def test_a_tenants_key_reaches_no_other_models(target: str) -> None:
    verdict = decide(Principal("p", "K", (TENANT,)), invoke(target))
    assert not verdict.is_allowed
    assert f"for TargetModel '{target}'" in verdict.reason


@pytest.mark.parametrize(
    "ask",
    [
        invoke("acme/query", "other"),
        invoke("acme/query", "Embeddings"),
        Ask("sagemaker:DeleteEndpoint", (Resource("endpoint", "embeddings"),)),
        Ask("sagemaker:ListEndpoints"),
        Ask("flatshare:GetStatus"),
        Ask(""),
    ],
)
def test_what_no_grant_allows_is_denied(ask: Ask) -> None:
    assert not may(ask, TENANT)


def test_who_has_no_grants_may_nothing() -> None:
    assert not may(invoke("acme/query"))


def test_an_action_on_all_there_is_needs_a_grant_for_all() -> None:
    ask = Ask("sagemaker:ListEndpoints")
    assert may(ask, Grant(("sagemaker:List*",)))
    assert not may(ask, Grant(("sagemaker:List*",), ("team-*",)))


def test_every_resource_that_is_named_must_be_covered_by_some_grant() -> None:
    ask = Ask("sagemaker:CreateEndpointConfig", (Resource("endpoint-config", "team-a"), Resource("model", "team-b-secret")))
    assert not may(ask, Grant(("sagemaker:*",), ("team-a*",)))
    assert may(ask, Grant(("sagemaker:*",), ("team-a*",)), Grant(("sagemaker:Create*",), ("team-b*",)))
    assert not may(ask, Grant(("sagemaker:*",), ("team-a*",)), Grant(("sagemaker:Describe*",), ("team-b*",)))


def test_endpoint_and_target_must_be_in_one_grant() -> None:
    grants = (Grant((INVOKE,), ("a",), ("x/*",)), Grant((INVOKE,), ("b",), ("y/*",)))
    assert may(invoke("x/1", "a"), *grants)
    assert not may(invoke("x/1", "b"), *grants)
    assert not may(invoke("y/1", "a"), *grants)


def test_actions_are_alike_in_any_case_and_nothing_else_is() -> None:
    assert may(invoke("acme/x"), Grant(("SageMaker:invoke*",), ("embeddings",), ("acme/*",)))
    assert not may(invoke("ACME/x"), Grant((INVOKE,), ("embeddings",), ("acme/*",)))


def test_a_call_without_a_target_is_for_those_who_may_call_all() -> None:
    assert may(invoke(""), Grant((INVOKE,)))
    assert not may(invoke(""), Grant((INVOKE,), ("*",), ("?*",)))


@given(st.text(alphabet="ab*?.[\n", max_size=12), st.text(alphabet="ab.[\n", max_size=12))
def test_a_pattern_matches_as_its_plain_translation_does(pattern: str, text: str) -> None:
    plain = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    assert is_like(pattern, text) == (re.fullmatch(plain, text, re.DOTALL) is not None)


def test_no_pattern_makes_a_match_take_long() -> None:
    started_s = time.process_time()
    assert not is_like("*a" * 200 + "b", "a" * 1024)
    assert time.process_time() - started_s < 5  # the plain translation takes longer than the universe has
