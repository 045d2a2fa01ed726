"""The next instance of a name has the hot models of the last one, as far as there is room."""

import asyncio
from pathlib import Path

import orjson
import structlog

from flatshare.core.call import Urgency
from flatshare.instance.hot import HotSet
from tests.instance.conftest import AN_OLDER_FORM, BASE, OWN, SESSION, Flat, key_of, running_flat, source


async def test_the_hot_set_is_loaded_ahead_most_valuable_first_and_leaves_room(flat: Flat, tmp_path: Path) -> None:
    for _ in range(5):
        await flat.use("m0", "m1")
    flat.clock.advance(700)
    await flat.use("m0", "m1", "m2", "m3")
    hot = HotSet(flat.cache, tmp_path, "name")
    hot._write(flat.cache.demand.export(100))
    async with running_flat(BASE + SESSION + 5 * (OWN + 1_000), anonymous_share=1.0) as later:
        for index in range(10):
            later.finder.put(f"m{index}")
        hot = HotSet(later.cache, tmp_path, "name")
        assert hot.restore() == 4
        await hot.warm(but={key_of("m0")})
        assert "m0" not in later.resident
        assert "m1" in later.resident
        assert later.journal.counts["load"] == len(later.resident) <= 4
        assert later.entries("evict") == []
        assert set(later.finder.urgencies) == {Urgency.AHEAD}


async def test_who_asks_for_what_is_being_loaded_ahead_hastens_it(flat: Flat, tmp_path: Path) -> None:
    flat.finder.gate.clear()
    warming = asyncio.create_task(flat.cache.warm(key_of("m0"), source("m0")))
    await flat.until(lambda: flat.finder.searches == 1)
    riding = asyncio.create_task(flat.use("m0"))
    await flat.until(lambda: flat.finder.hastened == [source("m0")])
    flat.finder.gate.set()
    await asyncio.gather(warming, riding)
    assert flat.finder.urgencies == [Urgency.AHEAD]


async def test_a_model_that_cannot_be_loaded_any_more_is_passed_over(flat: Flat, tmp_path: Path) -> None:
    await flat.use("m0", "m1")
    HotSet(flat.cache, tmp_path, "name")._write(flat.cache.demand.export(100))
    async with running_flat(BASE + SESSION + 5 * (OWN + 1_000), anonymous_share=1.0) as later:
        later.finder.put("m1")
        hot = HotSet(later.cache, tmp_path, "name")
        hot.restore()
        await hot.warm()
        assert later.resident == {"m1"}


async def test_what_cannot_be_read_is_no_reason_not_to_start(flat: Flat, tmp_path: Path) -> None:
    hot = HotSet(flat.cache, tmp_path, "name")
    assert hot.restore() == 0
    for rubbish in (b"{broken", b"[1]", orjson.dumps([{"key": "x"}])):
        (tmp_path / "name.hot.json").write_bytes(rubbish)
        assert hot.restore() == 0


async def test_an_older_form_is_passed_over_with_a_warning_and_written_anew(flat: Flat, tmp_path: Path) -> None:
    path = tmp_path / "name.hot.json"
    path.write_bytes(AN_OLDER_FORM)
    hot = HotSet(flat.cache, tmp_path, "name")
    with structlog.testing.capture_logs() as lines:
        assert hot.restore() == 0
    assert [(line["event"], line["log_level"], line["path"]) for line in lines] == [("hot_set_unreadable", "warning", str(path))]
    await flat.use("m0")
    hot._write(flat.cache.demand.export(100))
    assert hot.restore() == 1


async def test_what_had_to_go_for_others_comes_back_when_there_is_room_and_what_was_unloaded_does_not(flat: Flat, tmp_path: Path) -> None:
    room = BASE + SESSION + 5 * (OWN + 1_000)
    async with running_flat(BASE + SESSION + 2 * (OWN + 1_000), anonymous_share=1.0) as small:
        for index in range(4):
            small.finder.put(f"m{index}")
        hot = HotSet(small.cache, tmp_path, "name")
        await small.use("m0", "m1", "m2", "m3")
        gone = {"m0", "m1", "m2", "m3"} - small.resident
        assert gone
        await hot.bring_back()
        assert not gone & small.resident
        await small.cache.unload(key_of("m3"))
        await small.cache.set_memory(room)
        await hot.bring_back()
        assert gone <= small.resident
        assert "m3" not in small.resident


async def test_warming_ahead_ends_in_time_and_goes_on_later(flat: Flat, tmp_path: Path) -> None:
    await flat.use("m0")
    hot = HotSet(flat.cache, tmp_path, "name")
    await flat.cache.unload(key_of("m0"))
    flat.finder.gate.clear()
    await hot.warm_ahead((), within_s=0.01)
    assert flat.resident == set()
    flat.finder.gate.set()
    await flat.until(lambda: flat.resident == {"m0"})  # the load itself was not given up
