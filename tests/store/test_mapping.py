"""Packs in memory: mapped once, unmapped with the last view, without a descriptor."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flatshare.store.mapping import MapPool


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "p.pack"
    path.write_bytes(np.arange(4096, dtype="<f4").tobytes())
    return path


def lines_of(path: Path) -> int:
    gc.collect()
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_tensor_is_a_view_of_the_file(pack: Path) -> None:
    tensor = MapPool().get(pack).tensor(64, (2, 3), 24)
    np.testing.assert_array_equal(tensor, np.arange(16, 22, dtype=np.float32).reshape(2, 3))
    assert not tensor.flags.owndata


def test_a_view_cannot_be_written(pack: Path) -> None:
    tensor = MapPool().get(pack).tensor(0, (4,), 16)
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        tensor.flags.writeable = True


def test_a_pack_is_mapped_once_and_goes_with_its_last_view(pack: Path) -> None:
    pool = MapPool()
    tensors = [pool.get(pack).tensor(offset, (4,), 16) for offset in range(0, 640, 64)]
    assert (len(pool), lines_of(pack)) == (1, 1)
    last = tensors.pop()
    tensors.clear()
    assert (len(pool), lines_of(pack)) == (1, 1)
    assert last[0] == 144
    del last
    assert (len(pool), lines_of(pack)) == (0, 0)


def test_a_view_of_a_view_keeps_the_map(pack: Path) -> None:
    pool = MapPool()
    part = pool.get(pack).tensor(0, (64, 64), 16384)[3:, ::2]
    assert lines_of(pack) == 1
    assert part[0, 1] == 194


def test_no_descriptor_stays_open(pack: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = MapPool().get(pack)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert held.tensor(0, (1,), 4)[0] == 0


def test_a_pack_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MapPool().get(tmp_path / "none.pack")


def test_a_tensor_beyond_the_end_is_an_error_and_no_signal(pack: Path) -> None:
    with pytest.raises(ValueError, match="reshape"):
        MapPool().get(pack).tensor(16_000, (1_000,), 4_000)


def test_what_is_mapped_stays_readable_when_the_file_is_deleted(pack: Path) -> None:
    tensor = MapPool().get(pack).tensor(0, (4096,), 16384)
    pack.unlink()
    assert tensor.sum() == sum(range(4096))


def test_threads_that_map_and_drop_at_once_leave_nothing_behind(pack: Path) -> None:
    pool = MapPool()

    def use(index: int) -> float:
        return float(pool.get(pack).tensor(4 * index, (1,), 4)[0])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(2_000))) == list(range(2_000))
    assert (len(pool), lines_of(pack)) == (0, 0)
