"""The comparison with prepacked weights compares equal answers, and gives every figure."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flatshare.bench import promoted
from flatshare.bench.prepacked import engines
from flatshare.bench.story import Results
from flatshare.bench.tenants import base_checkpoint, tenants, write_tenants

pytestmark = pytest.mark.slow


def no_steps(_name: str, _parts: int) -> Callable[[], None]:
    return lambda: None


def test_engines_alone_are_compared_at_every_length(tmp_path: Path) -> None:
    figures = engines(tmp_path, 1, 2, no_steps)
    for name in ("onnxruntime", "copy"):
        assert figures[f"{name}_speedup_30"] == pytest.approx(figures["mapped_30_ms"] / figures[f"{name}_30_ms"], rel=0.01)
        assert figures.keys() >= {f"{name}_create_ms", f"{name}_8_ms", f"{name}_250_ms", f"{name}_mb_per_model"}


def test_two_servers_are_compared_once_all_models_of_one_have_copies(tmp_path: Path) -> None:
    models, results = tenants(1)[:2], Results()
    for _ in write_tenants(base_checkpoint(), tmp_path / "models", models):
        pass
    promoted.run(tmp_path, tmp_path / "models", models, 4, results, no_steps)
    figures = results.values
    assert figures["prepacked_after_s"] > 0
    assert figures["prepacked_mb_per_model"] > 20, "there are copies"
    assert figures["prepacked_speedup"] == pytest.approx(figures["mapped_run_p50_ms"] / figures["prepacked_run_p50_ms"], rel=0.02)
    assert figures["prepacked_requests_per_s"] > 0 < figures["mapped_requests_per_s"]
