"""The benchmark of deployment measures what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flatshare.bench.deploy import TARGETS, Scale, run

pytestmark = pytest.mark.slow


def test_a_small_run_gives_every_figure(tmp_path: Path) -> None:
    def begin(_name: str, count: int) -> Callable[[], None]:
        assert count > 0
        return lambda: None

    figures = run(tmp_path, Scale(packages=2, switches=4, pairs=5, heads=3), begin)
    assert set(TARGETS) <= set(figures)
    assert figures["switch_failed_requests"] == figures["batch_failed"] == 0
    assert figures["switch_answered_requests"] > 0
