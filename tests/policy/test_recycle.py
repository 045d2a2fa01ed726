"""What is done about memory that did not come back."""

from typing import Any

from flatshare.core.sizes import MIB
from flatshare.policy.recycle import Remedy, remedy


def of(excess_mib: int, **more: Any) -> Remedy:
    given: dict[str, Any] = {"is_quiet": True, "has_shrunk": True} | more
    return remedy(booked=100 * MIB, measured=(100 + excess_mib) * MIB, budget=1024 * MIB, recycle_share=0.25, **given)


def test_a_little_is_tolerated() -> None:
    assert of(30, has_shrunk=False) is Remedy.NONE
    assert of(-50) is Remedy.NONE


def test_first_the_heap_is_shrunk_when_nobody_runs() -> None:
    assert of(300, has_shrunk=False) is Remedy.SHRINK
    assert of(300, has_shrunk=False, is_quiet=False) is Remedy.NONE


def test_what_shrinking_did_not_give_back_replaces_the_instance() -> None:
    assert of(300) is Remedy.RECYCLE
    assert of(200) is Remedy.NONE


def test_while_requests_run_twice_as_much_is_borne() -> None:
    assert of(300, is_quiet=False) is Remedy.NONE
    assert of(600, is_quiet=False) is Remedy.RECYCLE
