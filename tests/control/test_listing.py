from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from flatshare.control.listing import Listed, list_page
from flatshare.core.errors import ValidationFailed

from .calls import container

names = st.text("abc", min_size=1, max_size=3)
items_of_a_list = st.lists(
    st.builds(Listed, names, st.sampled_from([1.0, 2.0, 3.0]), st.floats(0, 9), st.sampled_from(["InService", "Failed"])),
    unique_by=lambda item: item.name,
)


@given(
    items_of_a_list,
    st.sampled_from(["Name", "CreationTime", "Status"]),
    st.sampled_from(["Ascending", "Descending"]),
    st.integers(1, 4),
)
def test_the_pages_together_are_the_sorted_list(items: list[Listed], sort_by: str, order: str, size: int) -> None:
    params: dict[str, Any] = {"SortBy": sort_by, "SortOrder": order, "MaxResults": size}
    whole = list_page(items, params | {"MaxResults": 100}).items
    seen: list[Listed] = []
    page = list_page(items, params)
    while page.next_token:
        assert len(page.items) == size
        seen += page.items
        page = list_page(items, params | {"NextToken": page.next_token})
    assert seen + page.items == whole
    assert sorted(whole, key=lambda item: item.name) == sorted(items, key=lambda item: item.name)


def test_what_was_deleted_between_two_pages_hides_nothing() -> None:
    items = [Listed(name, 1.0) for name in "abcd"]
    params = {"SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 2}
    token = list_page(items, params).next_token
    rest = list_page([item for item in items if item.name != "b"], params | {"NextToken": token}).items
    assert [item.name for item in rest] == ["c", "d"]


@pytest.mark.parametrize("token", ["", "!", "bm9uc2Vuc2U=", "WzEsMl0=", "W10=", "bnVsbA==", "é"])
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(ValidationFailed, match="Invalid NextToken"):
        list_page([], {"NextToken": token})


def test_a_token_of_another_order_is_refused() -> None:
    token = list_page([Listed("a", 1.0), Listed("b", 1.0)], {"MaxResults": 1}).next_token
    with pytest.raises(ValidationFailed, match="Invalid NextToken"):
        list_page([], {"NextToken": token, "SortBy": "Name"})


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, ["new", "middle", "old"]),
        ({"SortOrder": "Ascending"}, ["old", "middle", "new"]),
        ({"SortBy": "Name", "SortOrder": "Ascending"}, ["middle", "new", "old"]),
        ({"SortBy": "Status"}, ["old", "middle", "new"]),
        ({"NameContains": "D"}, ["middle", "old"]),
        ({"CreationTimeAfter": 2.0}, ["new", "middle"]),
        ({"CreationTimeBefore": 2.0}, ["old"]),
        ({"LastModifiedTimeAfter": 20.0}, ["new", "middle"]),
        ({"LastModifiedTimeBefore": 20.0}, ["old"]),
        ({"StatusEquals": "InService"}, ["middle", "old"]),
    ],
)
def test_filters_and_orders(params: dict[str, Any], found: list[str]) -> None:
    items = [
        Listed("old", 1.0, 10.0, "InService"),
        Listed("middle", 2.0, 20.0, "InService"),
        Listed("new", 3.0, 30.0, "Failed"),
    ]
    assert [item.name for item in list_page(items, params).items] == found


def test_a_page_has_ten_items_unless_told(sagemaker: Any) -> None:
    for number in range(12):
        sagemaker.create_model(ModelName=f"m{number}", PrimaryContainer=container())
    first = sagemaker.list_models()
    assert len(first["Models"]) == 10
    second = sagemaker.list_models(NextToken=first["NextToken"])
    assert len(second["Models"]) == 2
    assert "NextToken" not in second
    pages = sagemaker.get_paginator("list_models").paginate(SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 5})
    assert [m["ModelName"] for page in pages for m in page["Models"]] == sorted(f"m{number}" for number in range(12))


def test_what_describe_showed_as_creation_time_finds_the_model_again(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    created = sagemaker.describe_model(ModelName="m")["CreationTime"]
    assert len(sagemaker.list_models(CreationTimeAfter=created)["Models"]) == 1
    assert sagemaker.list_models(CreationTimeBefore=created)["Models"] == []


def test_an_order_that_does_not_exist_is_refused(sagemaker: Any) -> None:
    with pytest.raises(ClientError, match=r"Member must satisfy enum value set: \[Name, CreationTime\]"):
        sagemaker.list_models(SortBy="Status")
