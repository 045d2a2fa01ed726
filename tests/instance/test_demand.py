"""What is remembered of requests, across evictions and across instances."""

import pytest

from flatshare.core.clock import ManualClock
from flatshare.core.ids import ModelKey
from flatshare.instance.demand import DemandBook, Known
from flatshare.policy.worth import Visits
from tests.instance.conftest import key_of, source

M0, M1 = key_of("m0"), key_of("m1")


def worth(book: DemandBook, key: ModelKey) -> float:
    return book.worth(key)


def test_the_more_a_model_is_wanted_the_more_it_is_worth() -> None:
    clock = ManualClock()
    book = DemandBook(clock)
    for hour in range(6):
        clock.advance(3_600)
        book.visit(M0, source("m0"))
        if hour == 0:
            book.visit(M1, source("m1"))
    clock.advance(1_800)
    assert worth(book, M0) > worth(book, M1) > 0


def test_a_slow_load_is_remembered() -> None:
    book = DemandBook(ManualClock())
    book.visit(M0, source("m0"))
    before = worth(book, M0)
    book.loaded(M0, 3.0)
    assert worth(book, M0) > 10 * before


def test_a_weight_is_a_factor() -> None:
    book = DemandBook(ManualClock())
    book.visit(M0, source("m0"))
    assert book.worth(M0, 3.0) == pytest.approx(3 * worth(book, M0))


def test_what_one_instance_knew_the_next_one_knows() -> None:
    clock = ManualClock(500.0)
    book = DemandBook(clock)
    for _ in range(4):
        clock.advance(3_600)
        book.visit(M0, source("m0"))
    clock.advance(60)
    [record] = book.export(10)
    later = DemandBook(ManualClock(7.0))
    known = book.known()[M0]
    later.restore(M0, Known(known.source, known.visits, known.reload_s), float(str(record["age_s"])))
    assert later.known()[M0].visits.faded == known.visits.faded
    assert later.known()[M0].visits.last_s == 7.0 - 60.0
    assert worth(later, M0) > 0


def test_what_is_known_better_is_not_overwritten() -> None:
    book = DemandBook(ManualClock())
    book.visit(M0, source("m0"))
    book.restore(M0, Known(source("old"), Visits(0.0), 1.0), 5.0)
    assert book.known()[M0].source == source("m0")
