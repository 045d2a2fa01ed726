"""Names that whoever deploys and whoever calls derive alike."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadInput
from flatshare.core.naming import checked_alias, endpoint_name, labelled_target, model_name, parse_target

SAGEMAKER = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


def test_a_plain_kind_gives_a_plain_name() -> None:
    assert endpoint_name("embedding") == "flatshare-embedding"
    assert endpoint_name("ranking", "eu-prod") == "eu-prod-ranking"


@given(st.text(max_size=200), st.text(max_size=200))
def test_every_endpoint_name_is_one_that_sagemaker_takes(kind: str, fleet: str) -> None:
    assert SAGEMAKER.fullmatch(endpoint_name(kind, fleet))


@given(st.lists(st.tuples(st.text("ab-._ ", max_size=70), st.text("ab-._ ", max_size=70)), min_size=2, max_size=2, unique=True))
def test_two_kinds_or_fleets_never_share_an_endpoint(pairs: list[tuple[str, str]]) -> None:
    assert endpoint_name(*pairs[0]) != endpoint_name(*pairs[1])


@pytest.mark.parametrize("part", ["", "query"])
def test_a_labelled_target_is_read_as_it_was_written(part: str) -> None:
    labelled = parse_target(labelled_target("acme/intent", "live", part))
    assert labelled is not None
    assert (labelled.model, labelled.label, labelled.part) == ("acme/intent", "live", part)


@pytest.mark.parametrize("key", ["acme/query", "acme/intent.tar.gz", "@live", "acme/intent@", "a@b@c", "a/b@/c"])
def test_a_plain_key_names_no_label(key: str) -> None:
    assert parse_target(key) is None


@pytest.mark.parametrize(("tenant", "name"), [("", "x"), ("a/b", "x"), ("..", "x"), ("a", ""), ("a", "x@1"), ("a", "x" * 64)])
def test_a_tenant_or_name_that_could_not_be_part_of_a_path_is_refused(tenant: str, name: str) -> None:
    with pytest.raises(BadInput, match="must be 1 to 63 of"):
        model_name(tenant, name)


@pytest.mark.parametrize("alias", ["7", "", "Live", "a/b", "a" * 33])
def test_an_alias_cannot_be_taken_for_a_version(alias: str) -> None:
    with pytest.raises(BadInput, match="must be 1 to 32 of"):
        checked_alias(alias)
