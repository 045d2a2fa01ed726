"""What is remembered of requests, across evictions and across instances."""

from pathlib import Path

import orjson
import pytest

from flatshare.core.clock import ManualClock
from flatshare.core.ids import ModelKey
from flatshare.instance.demand import DemandBook, Known, records
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


def test_the_way_onto_the_disk_is_remembered_beside_the_load_and_over_a_restart(tmp_path: Path) -> None:
    book = DemandBook(ManualClock())
    book.visit(M0, source("m0"))
    book.loaded(M0, 0.03, 2.0)
    book.visit(M0, source("m0"))
    book.loaded(M0, 0.03)
    assert book.reload_s(M0) == pytest.approx(0.03)
    assert book.reload_s(M0, is_fetch=True) == pytest.approx(2.03)
    (tmp_path / "a.hot.json").write_bytes(orjson.dumps(book.export(10)))
    (record,) = records(tmp_path / "a.hot.json", now_s=0.0)
    assert record.known.fetch_s == 2.0


def test_what_was_written_before_fetches_were_timed_is_read_all_the_same(tmp_path: Path) -> None:
    book = DemandBook(ManualClock())
    book.visit(M0, source("m0"))
    (fields,) = book.export(10)
    del fields["fetch_s"]
    (tmp_path / "a.hot.json").write_bytes(orjson.dumps([fields]))
    (record,) = records(tmp_path / "a.hot.json", now_s=0.0)
    assert record.known.fetch_s == 0.0


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


def reload_often(book: DemandBook, clock: ManualClock, seconds: int) -> None:
    """Once a second a model that has just been evicted comes back."""
    for _ in range(seconds):
        clock.advance(1)
        book.evicted(M0)
        book.loaded(M0, 0.03)


def lacks_memory(book: DemandBook) -> bool:
    return book.lacks_memory


def test_a_burst_of_reloads_and_then_silence_is_no_lack_of_memory() -> None:
    clock = ManualClock()
    book = DemandBook(clock)
    reload_often(book, clock, 5)
    clock.advance(121)
    assert not lacks_memory(book)
    reload_often(book, clock, 1)
    assert not lacks_memory(book)


def test_two_minutes_of_reloads_are_a_lack_of_memory_until_they_end() -> None:
    clock = ManualClock()
    book = DemandBook(clock)
    reload_often(book, clock, 119)
    assert not lacks_memory(book)
    reload_often(book, clock, 5)
    assert lacks_memory(book)
    clock.advance(121)
    assert not lacks_memory(book)
