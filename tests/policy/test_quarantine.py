"""Suspicion falls on whoever was under way, and conviction on whoever was alone."""

from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey
from flatshare.policy import quarantine
from flatshare.policy.quarantine import Record

KEYS = st.frozensets(st.sampled_from([ModelKey(f"m{i}") for i in range(6)]), max_size=6)
POISON, INNOCENT = ModelKey("poison"), ModelKey("innocent")


def deaths(*under_way: set[ModelKey], now_s: float = 0.0) -> dict[ModelKey, Record]:
    records: dict[ModelKey, Record] = {}
    for keys in under_way:
        records = quarantine.after_death(records, frozenset(keys), now_s)
    return records


@given(st.lists(KEYS, max_size=6))
def test_only_who_was_under_way_is_suspected_and_nobody_at_the_first_death_convicted(rounds: list[frozenset[ModelKey]]) -> None:
    records: dict[ModelKey, Record] = {}
    for number, keys in enumerate(rounds):
        before, records = records, quarantine.after_death(records, keys, 0.0)
        assert set(records) == set(before) | keys
        assert sum(records[key] != before.get(key) and records[key].convictions > 0 for key in records) <= 1
        assert number or all(record.convictions == 0 for record in records.values())


def test_the_innocent_is_cleared_by_its_first_run_that_ends_well() -> None:
    records = deaths({POISON, INNOCENT})
    assert quarantine.cleared(records[INNOCENT]) is None


def test_who_dies_alone_among_suspects_twice_is_shut_out_and_longer_each_time() -> None:
    records = deaths({POISON, INNOCENT}, {POISON})
    assert not quarantine.is_shut_out(records[POISON], 1.0)
    records = deaths({POISON, INNOCENT}, {POISON}, {POISON})
    assert quarantine.is_shut_out(records[POISON], 599.0)
    assert not quarantine.is_shut_out(records[POISON], 601.0)
    assert not quarantine.is_shut_out(records[INNOCENT], 1.0)
    assert quarantine.is_shut_out(deaths({POISON}, {POISON}, {POISON}, {POISON})[POISON], 1_199.0)


def test_a_convict_that_behaves_is_no_suspect_and_not_forgotten() -> None:
    record = quarantine.cleared(deaths({POISON}, {POISON}, {POISON})[POISON])
    assert record is not None
    assert (record.is_suspect, record.convictions) == (False, 2)


def test_two_suspects_at_once_convict_nobody() -> None:
    records = deaths({POISON, INNOCENT}, {POISON, INNOCENT}, {POISON, INNOCENT})
    assert all(record.convictions == 0 for record in records.values())
