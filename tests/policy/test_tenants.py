"""Whose model it is."""

import pytest

from flatshare.core.call import ModelSource
from flatshare.policy.tenants import TenantOf, is_pinned, target_of

FIRST = r"([^/]+)/"


@pytest.mark.parametrize(
    ("uri", "root", "target", "tenant"),
    [
        ("s3://b/p/acme/query", "s3://b/p/", "acme/query", "acme"),
        ("s3://b/p/acme/deep/query", "s3://b/p", "acme/deep/query", "acme"),
        ("s3://b/p/query", "s3://b/p/", "query", "-"),
        ("file:///opt/ml/models/x/model", "file:///opt/ml/models/x/model", "model", "-"),
    ],
)
def test_the_first_part_of_the_target_is_the_tenant(uri: str, root: str, target: str, tenant: str) -> None:
    source = ModelSource(uri, root)
    assert (target_of(source), TenantOf(FIRST)(source)) == (target, tenant)


def test_a_pattern_says_otherwise() -> None:
    assert TenantOf(r"models/([a-z]+)-")(ModelSource("s3://b/models/acme-query", "s3://b/")) == "acme"


def test_pins_are_target_models_with_wildcards() -> None:
    assert is_pinned("acme/query", ("other/*", "acme/*"))
    assert not is_pinned("acme/query", ("acme", "ACME/*"))
