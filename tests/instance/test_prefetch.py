"""Models that left the disk come back before they are asked for again, the most valuable first, if that is worth it."""

from pathlib import Path

import pytest

from flatshare.core.call import Urgency
from flatshare.core.errors import DiskFull
from flatshare.core.ids import ArtifactUri
from flatshare.instance.prefetch import Prefetcher
from flatshare.store.catalog import Catalog, Refusal
from tests.instance.conftest import Flat, key_of, source


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.db")


async def has_left(flat: Flat, *names: str) -> None:
    """Asked for, and then neither in memory nor, as far as the catalog knows, on the disk."""
    await flat.use(*names)
    for name in set(names):
        await flat.cache.unload(key_of(name))
    flat.finder.urgencies.clear()
    flat.finder.sources.clear()


async def test_what_has_left_the_disk_is_brought_back_the_most_valuable_first(flat: Flat, catalog: Catalog) -> None:
    await has_left(flat, "m0")
    flat.clock.advance(3_600)
    await has_left(flat, "m1", "m2", "m1", "m1")
    await Prefetcher(flat.cache, flat.finder, catalog, 60).round()
    assert flat.finder.sources[0] == source("m1")
    assert len(flat.finder.sources) == 3
    assert set(flat.finder.urgencies) == {Urgency.AHEAD}
    assert flat.resident == set(), "onto the disk, not into memory"


async def test_what_is_in_memory_on_the_disk_or_refused_is_left_alone(flat: Flat, catalog: Catalog) -> None:
    await has_left(flat, "m0")
    await flat.use("m1")
    flat.finder.urgencies.clear()
    catalog.remember_refusal(ArtifactUri(source("m0").uri), "1", Refusal("BadPackage", "broken"))
    await Prefetcher(flat.cache, flat.finder, catalog, 60).round()
    assert flat.finder.urgencies == []


async def test_when_one_is_not_worth_it_those_after_it_are_not_tried(flat: Flat, catalog: Catalog) -> None:
    await has_left(flat, "m0", "m1")
    flat.finder.failures |= {"m0": DiskFull("not worth it"), "m1": DiskFull("not worth it")}
    await Prefetcher(flat.cache, flat.finder, catalog, 60).round()
    assert len(flat.finder.urgencies) == 1


async def test_what_is_gone_is_not_looked_for_until_somebody_asks_again(flat: Flat, catalog: Catalog) -> None:
    await has_left(flat, "m0")
    model = flat.finder.models.pop("m0")
    prefetcher = Prefetcher(flat.cache, flat.finder, catalog, 60)
    await prefetcher.round()
    await prefetcher.round()
    assert len(flat.finder.urgencies) == 1
    flat.finder.models["m0"] = model
    await has_left(flat, "m0")
    await prefetcher.round()
    assert flat.finder.urgencies == [Urgency.AHEAD]
