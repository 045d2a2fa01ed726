"""The page of what is served says what the code does."""

from pathlib import Path
from typing import Any

import botocore
import pytest

from flatshare.control import coverage
from flatshare.control.app import OPERATIONS
from flatshare.wire.aws_json import load_service

from .calls import container, variant
from .test_configs import refusal

PAGE = Path(__file__).parents[2] / "docs/api-coverage.md"
WRITTEN_WITH = "1.44.8"
"""The botocore whose members the page lists."""


def require_same_botocore() -> None:
    if botocore.__version__ != WRITTEN_WITH:
        pytest.skip(f"the page was written with botocore {WRITTEN_WITH}, this is {botocore.__version__}: members may have been added")


def test_the_page_is_what_the_code_writes() -> None:
    require_same_botocore()
    assert PAGE.read_text() == coverage.render(), "run: make docs"


def test_every_operation_has_its_row() -> None:
    rows = PAGE.read_text().splitlines()
    assert [name for name in OPERATIONS if not any(row.startswith(f"| {name} |") for row in rows)] == []


def test_the_tables_name_members_that_aws_has() -> None:
    require_same_botocore()
    assert coverage.misnamed() == {}
    assert set(coverage.DIFFERENCES) <= set(OPERATIONS)


def example(shape: Any) -> Any:
    """Some value that the model admits."""
    match shape.type_name:
        case "structure":
            return {name: example(shape.members[name]) for name in shape.required_members}
        case "list":
            return [example(shape.member)]
        case "boolean":
            return True
        case "integer" | "long" | "float":
            return shape.metadata.get("min", 1)
        case _:
            return shape.metadata["enum"][0] if "enum" in shape.metadata else "s3://bucket/key"


@pytest.mark.parametrize("member", coverage._refused("ProductionVariant"))
def test_what_the_page_says_is_refused_of_a_variant_is_refused(sagemaker: Any, member: str) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    shape: Any = load_service("sagemaker").shape_for("ProductionVariant")
    assert member in refusal(sagemaker, variant() | {member: example(shape.members[member])})


@pytest.mark.parametrize("structure", coverage.STRUCTURES, ids=lambda structure: structure.name)
def test_nothing_is_both_refused_and_without_effect(structure: coverage.Structure) -> None:
    assert not set(structure.refused) & set(structure.without_effect)
