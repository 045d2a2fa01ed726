"""The comparison with prepacked weights compares equal answers, and gives every figure."""

from pathlib import Path

import pytest

from flatshare.bench.prepacked import run

pytestmark = pytest.mark.slow


def test_a_small_run_gives_every_figure(tmp_path: Path) -> None:
    figures = run(tmp_path, 1, 2, lambda _name, _parts: lambda: None)
    assert figures["prepacked_speedup"] == figures["prepacked_speedup_30"] > 0
    assert figures.keys() >= {"prepacked_create_ms", "mapped_8_ms", "prepacked_8_ms", "mapped_250_ms", "prepacked_250_ms"}
    assert "prepacked_mb_per_model" in figures  # how much depends here on what earlier tests left to this process
