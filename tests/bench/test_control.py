"""The benchmark of the control plane measures what it says, on a server of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flatshare.bench.control import TARGETS, Scale, run

pytestmark = pytest.mark.slow


def test_a_small_run_gives_every_figure_and_loses_nothing_in_the_restart(tmp_path: Path) -> None:
    parts: dict[str, int] = {}

    def begin(name: str, count: int) -> Callable[[], None]:
        parts[name] = 0

        def step() -> None:
            parts[name] += 1

        assert count > 0
        return step

    figures = run(tmp_path, Scale(models=12, endpoints=2, calls=20, describe_s=0.2), begin)
    assert set(TARGETS) <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert figures["restart_control_s"] <= figures["restart_s"] <= figures["restart_all_in_service_s"]
    assert (parts["creating models"], parts["control calls, one caller"], parts["endpoints coming back"]) == (12, 20, 2)
