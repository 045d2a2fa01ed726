"""The comparison with prepacked weights compares equal answers, and gives every figure."""

from pathlib import Path

import pytest

from flatshare.bench.prepacked import run

pytestmark = pytest.mark.slow


def test_a_small_run_gives_every_figure(tmp_path: Path) -> None:
    figures = run(tmp_path, 1, 2, lambda _name, _parts: lambda: None)
    assert figures["prepacked_speedup"] == figures["prepacked_speedup_30"] > 0
    assert figures["prepacked_mb_per_model"] > 20
