"""The way to the store: bounded for all fetches of the machine together, and those that somebody waits for come first."""

import threading
import time
from pathlib import Path
from threading import Event

import pytest

from flatshare.core.call import Urgency
from flatshare.core.settings import DiskSettings
from flatshare.store.link import Link

MIB = 2**20
TEN_MIB_PER_S = DiskSettings(bandwidth_bytes=10 * MIB, ahead_share=0.25)


def moments(link: Link, count: int) -> list[float]:
    """When `count` takes of one MiB may begin, after the first of them."""
    found = [link._reserve(MIB, 10 * MIB) for _ in range(count + 1)]
    return [moment - found[0] for moment in found[1:]]


def test_fetches_queue_for_the_bandwidth_whichever_process_they_run_in(tmp_path: Path) -> None:
    """Each Link opens the file anew, as another process would."""
    first = Link(tmp_path, TEN_MIB_PER_S, Urgency.DEMAND)._reserve(MIB, 10 * MIB)
    second = Link(tmp_path, TEN_MIB_PER_S, Urgency.DEMAND)._reserve(2 * MIB, 10 * MIB)
    third = Link(tmp_path, TEN_MIB_PER_S, Urgency.DEMAND)._reserve(MIB, 10 * MIB)
    assert (second - first, third - second) == pytest.approx((0.1, 0.2))


def test_what_is_fetched_ahead_takes_its_share_only(tmp_path: Path) -> None:
    assert moments(Link(tmp_path, TEN_MIB_PER_S, Urgency.AHEAD), 2) == pytest.approx([0.4, 0.8])


def test_what_is_fetched_ahead_leaves_the_rest_to_demand(tmp_path: Path) -> None:
    ahead, demand = (Link(tmp_path, TEN_MIB_PER_S, urgency) for urgency in (Urgency.AHEAD, Urgency.DEMAND))
    begin = ahead._reserve(MIB, 10 * MIB)
    ahead._reserve(MIB, 10 * MIB)
    assert demand._reserve(MIB, 10 * MIB) - begin < 0.3, "it did not wait for the second, which is due after 0.4 s"


def test_a_bandwidth_is_kept(tmp_path: Path) -> None:
    """Real time: four MiB at 10 MiB/s cannot pass in less than the time that the first three take."""
    link, began_s = Link(tmp_path, TEN_MIB_PER_S, Urgency.DEMAND), time.monotonic()
    for _ in range(4):
        link.take(MIB, Event())
    assert time.monotonic() - began_s >= 0.3


def test_who_gives_up_does_not_wait_for_the_link(tmp_path: Path) -> None:
    link, is_over = Link(tmp_path, DiskSettings(bandwidth_bytes=1), Urgency.DEMAND), Event()
    link.take(10**9, is_over)
    is_over.set()
    link.take(1, is_over)


def test_what_another_boot_wrote_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").write_bytes(b"x" * 36 + b"\xff" * 16)
    Link(tmp_path, TEN_MIB_PER_S, Urgency.DEMAND).take(MIB, Event())


def test_a_fetch_ahead_stands_back_while_somebody_waits_for_another(tmp_path: Path) -> None:
    ahead, passed = Link(tmp_path, DiskSettings(), Urgency.AHEAD), Event()

    def take() -> None:
        ahead.take(MIB, Event())
        passed.set()

    with Link(tmp_path, DiskSettings(), Urgency.DEMAND).open(), Link(tmp_path, DiskSettings(), Urgency.DEMAND).open():
        thread = threading.Thread(target=take)
        thread.start()
        assert not passed.wait(0.1)
    assert passed.wait(20)
    thread.join()
