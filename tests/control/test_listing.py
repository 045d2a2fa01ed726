from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sql
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from flatshare.control import state
from flatshare.control.database import Database
from flatshare.control.listing import Listed, Page, list_query, page_of
from flatshare.control.paging import next_items
from flatshare.core.errors import ValidationFailed

from .calls import container

names = st.text("abAB-", min_size=1, max_size=3)
items_of_a_list = st.lists(
    st.builds(
        Listed, names, st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([10.0, 20.0, 30.0]), st.sampled_from(["InService", "Failed"])
    ),
    unique_by=lambda item: item.name,
    max_size=12,
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "NameContains": st.text("abAB-", min_size=1, max_size=2),
        "CreationTimeBefore": st.sampled_from([2.0, 3.0]),
        "CreationTimeAfter": st.sampled_from([2.0, 3.0]),
        "LastModifiedTimeBefore": st.sampled_from([20.0, 30.0]),
        "LastModifiedTimeAfter": st.sampled_from([20.0, 30.0]),
        "StatusEquals": st.sampled_from(["InService", "Failed"]),
    },
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """In a transaction that is never committed."""
    database = Database(database_url)
    database.open(now_s=0.0)
    with database._connected(is_writing=True) as connection, connection.begin():
        yield connection
    database.close()


def page(connection: Connection, params: dict[str, Any]) -> Page:
    query = list_query(params)
    return page_of(next_items(connection, state._ENDPOINTS, query), query)


def store(connection: Connection, items: list[Listed]) -> None:
    connection.execute(sql.delete(state._ENDPOINTS))
    if items:
        rows = [{"name": i.name, "created_s": i.created_s, "modified_s": i.modified_s, "status": i.status, "revision": 1} for i in items]
        connection.execute(sql.insert(state._ENDPOINTS), rows)


def wanted(items: list[Listed], params: dict[str, Any]) -> list[Listed]:
    """The whole list, as it is plainest to say."""
    kept = [
        item
        for item in items
        if params.get("NameContains", "").lower() in item.name.lower()
        and params.get("CreationTimeAfter", 0.0) <= item.created_s < params.get("CreationTimeBefore", 99.0)
        and params.get("LastModifiedTimeAfter", 0.0) <= item.modified_s < params.get("LastModifiedTimeBefore", 99.0)
        and item.status == params.get("StatusEquals", item.status)
    ]
    return sorted(kept, key=lambda item: (item.key(params["SortBy"]), item.name), reverse=params["SortOrder"] == "Descending")


@given(
    items_of_a_list,
    filters,
    st.sampled_from(["Name", "CreationTime", "Status"]),
    st.sampled_from(["Ascending", "Descending"]),
    st.integers(1, 4),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pages_together_are_the_sorted_list(
    connection: Connection, items: list[Listed], chosen: dict[str, Any], sort_by: str, order: str, size: int
) -> None:
    store(connection, items)
    params: dict[str, Any] = {"SortBy": sort_by, "SortOrder": order, "MaxResults": size} | chosen
    seen: list[Listed] = []
    found = page(connection, params)
    while found.next_token:
        assert len(found.items) == size
        seen += found.items
        found = page(connection, params | {"NextToken": found.next_token})
    assert [*seen, *found.items] == wanted(items, params)


def test_what_was_deleted_between_two_pages_hides_nothing(connection: Connection) -> None:
    items = [Listed(name, 1.0) for name in "abcd"]
    store(connection, items)
    params = {"SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 2}
    token = page(connection, params).next_token
    store(connection, [item for item in items if item.name != "b"])
    rest = page(connection, params | {"NextToken": token}).items
    assert [item.name for item in rest] == ["c", "d"]


@pytest.mark.parametrize("token", ["", "!", "bm9uc2Vuc2U=", "WzEsMl0=", "W10=", "bnVsbA==", "é"])
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(ValidationFailed, match="Invalid NextToken"):
        list_query({"NextToken": token})


def test_a_token_of_another_order_is_refused(connection: Connection) -> None:
    store(connection, [Listed("a", 1.0), Listed("b", 1.0)])
    token = page(connection, {"MaxResults": 1}).next_token
    with pytest.raises(ValidationFailed, match="Invalid NextToken"):
        list_query({"NextToken": token, "SortBy": "Name"})


def test_the_latest_come_first_unless_another_order_is_asked_for(connection: Connection) -> None:
    store(connection, [Listed("old", 1.0), Listed("new", 2.0)])
    assert [item.name for item in page(connection, {}).items] == ["new", "old"]


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
