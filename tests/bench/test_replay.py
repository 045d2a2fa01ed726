"""The replay: as many requests as were asked for, as bursty as the trace says, and figures that keep their order."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flatshare.bench import replay
from flatshare.bench.replay import Traffic
from flatshare.cli.main import commands
from flatshare.core.errors import BadInput
from flatshare.policy.evict import Order


def write_trace(path: Path, *, clients: int = 12, windows: int = 6) -> Path:
    rate = np.array([[1 / (1 + client) for _ in range(windows)] for client in range(clients)])
    np.savez(path, names=np.array([f"c{n}" for n in range(clients)]), rate=rate, cv=np.full(rate.shape, 1.5))
    return path


def traffic_of(models: list[int]) -> Traffic:
    return Traffic(np.arange(len(models), dtype=np.float64) * 10, np.array(models, np.int64), len(set(models)))


def test_a_trace_is_scaled_to_the_requests_asked_for(tmp_path: Path) -> None:
    traffic = replay.read(write_trace(tmp_path / "t.npz"), 2_000)
    assert 1_300 < len(traffic.at_s) < 2_700
    assert (np.diff(traffic.at_s) >= 0).all()
    assert np.bincount(traffic.model)[0] > 5 * np.bincount(traffic.model)[11]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=150), st.integers(2, 6))
def test_nobody_loads_less_often_than_who_knows_the_future(models: list[int], places: int) -> None:
    traffic = traffic_of(models)
    best = replay.clairvoyant(traffic, places)
    for order in Order:
        found = replay.replay(traffic, order, places, load_s=0.2)
        assert len(set(models)) <= best.loads <= found.loads <= found.cold <= len(models)


def test_lru_is_what_it_is() -> None:
    assert replay.replay(traffic_of([0, 1, 2, 0, 1, 2]), Order.LRU, 2, 0.2).loads == 6
    assert replay.replay(traffic_of([0, 1, 0, 1, 2, 1]), Order.LRU, 2, 0.2).loads == 3
    assert replay.clairvoyant(traffic_of([0, 1, 2, 0, 1, 2]), 2).loads == 4


def test_who_comes_while_the_model_is_on_its_way_waits_too() -> None:
    traffic = Traffic(np.array([0.0, 0.1, 0.3]), np.zeros(3, np.int64), 1)
    assert replay.replay(traffic, Order.LRU, 2, load_s=0.2).cold == 2


def test_what_is_no_trace_is_refused_with_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_bytes(b"text")
    with pytest.raises(BadInput, match="names, rate and cv"):
        replay.read(tmp_path / "no.npz", 10)
    np.savez(tmp_path / "flat.npz", rate=np.ones(3), cv=np.ones(3))
    with pytest.raises(BadInput, match="clients, windows"):
        replay.read(tmp_path / "flat.npz", 10)


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    trace, report = write_trace(tmp_path / "t.npz"), tmp_path / "r.json"
    result = CliRunner().invoke(commands, ["bench", "replay", str(trace), "--requests", "500", "--json", str(report)])
    assert result.exit_code == 0, result.output
    assert "cold_percent_lru_20%" in report.read_text()
    assert "cold_percent_clairvoyant_40%" in report.read_text()
