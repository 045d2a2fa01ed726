"""Bit rot is found in the background: the pack is forgotten, its models leave memory, and the next request imports them anew."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from flatshare.instance.scrub import Scrubber
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder, imported, write_checkpoint
from tests.instance.conftest import Flat


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def rot(pack: Path) -> None:
    with pack.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))


async def test_a_flipped_bit_costs_the_pack_and_its_models_and_no_others(store: TensorStore, tmp_path: Path, flat: Flat) -> None:
    rotten, sound = (imported(store, write_checkpoint(tmp_path / name, seed=seed)) for seed, name in enumerate(("rotten", "sound")))
    for name, stored in {"m0": rotten, "m1": sound}.items():
        fake = flat.finder.models[name]
        flat.finder.models[name] = replace(fake, manifest=replace(fake.manifest, digest=stored.manifest.digest))
    await flat.use("m0", "m1")
    [pack] = {place.pack for place in rotten.places.values()}
    rot(store.pack_path(pack))
    await Scrubber(store, flat.cache, pause_s=0).round()
    await flat.until(lambda: flat.resident == {"m1"})
    assert flat.journal.counts["replace"] == 1
    assert store.stored(rotten.manifest.digest) is None
    assert store.stored(sound.manifest.digest) is not None
    again = import_folder(store, tmp_path / "rotten")
    assert again.manifest.digest == rotten.manifest.digest
    assert all(is_sound for _, is_sound in store.verify())


async def test_what_is_sound_is_left_alone(store: TensorStore, tmp_path: Path, flat: Flat) -> None:
    stored = imported(store, write_checkpoint(tmp_path / "a"))
    await Scrubber(store, flat.cache, pause_s=0).round()
    assert store.stored(stored.manifest.digest) == stored


async def test_one_instance_of_the_machine_scrubs(store: TensorStore, tmp_path: Path, flat: Flat) -> None:
    """The one that came first holds the turn; the other's run ends at once."""
    first = asyncio.create_task(Scrubber(store, flat.cache, pause_s=60).run())
    await flat.until((store.folder / "scrub.lock").exists)
    await asyncio.wait_for(Scrubber(store, flat.cache).run(), 10)
    first.cancel()
