"""The peers' memory is measured by the same steps as ours: what they are asked, what is counted, and that they serve the same model."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatshare.bench import memory_peers
from flatshare.bench.memory_peers import NO_PEERS, Peer, Peers
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported, write_checkpoint

_TINY = """
import mmap
from http.server import BaseHTTPRequestHandler, HTTPServer
import json

held = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/models":
            held[asked["model_name"]] = room = mmap.mmap(-1, 8_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for _ in range(1_000):  # at once, the heap would keep as much again
                room.write(b"x" * 8_000)
            self.answer(200)
        else:
            self.answer(200 if self.path.split("/")[2] in held and asked["inputs"][0]["data"][0] else 404)

    def do_DELETE(self):
        held.pop(self.path.split("/")[2]).close()
        self.answer(200)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextmanager
def tiny(_before: Sequence[str]) -> Iterator[Peer]:
    """A server in Triton's manner that holds 8 MB for each model, and gives them back."""
    with subprocess.Popen([sys.executable, "-c", _TINY], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield memory_peers._Triton(process.pid, int(process.stdout.readline()), Path("/models"))
        finally:
            process.kill()


@dataclass
class Full:
    """A peer that fails once it holds more than `room` models: if it is loaded, or only if it is asked."""

    room: int
    fails_when: str
    loaded: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    pid: int = 0

    def load(self, name: str) -> None:
        self.loaded.append(name)
        self._fail("load")

    def unload(self, name: str) -> None:
        self.loaded.remove(name)

    def ask(self, name: str, text: str) -> None:
        assert text
        self.asked.append(name)
        self._fail("ask")

    def _fail(self, when: str) -> None:
        if len(self.loaded) > self.room and when == self.fails_when:
            raise RuntimeError("out of memory")


NAMES = [f"m{number}" for number in range(8)]


@pytest.mark.parametrize("fails_when", ["load", "ask"])
def test_as_many_fit_as_answered_all_together_before_one_failed(fails_when: str) -> None:
    peer = Full(3, fails_when)
    assert memory_peers._how_many(peer, NAMES) == 3
    assert peer.asked[:6] == ["m0", "m0", "m1", "m0", "m1", "m2"]
    assert memory_peers._how_many(Full(100, fails_when), NAMES) == len(NAMES)


def test_all_models_are_asked_in_turn_and_the_first_round_is_not_counted() -> None:
    peer = Full(100, "ask")
    assert memory_peers._p99_ms(peer, ["a", "b"]) >= 0
    assert peer.loaded == ["a", "b"]
    assert peer.asked == ["a", "b"] * 101


def test_without_a_peer_nothing_is_measured_and_nothing_written(tmp_path: Path) -> None:
    assert memory_peers.run(tmp_path / "peers", tmp_path / "store", NO_PEERS, lambda _name, _parts: lambda: None) == {}
    assert Peers() == NO_PEERS
    assert not (tmp_path / "peers").exists()


def test_a_peer_s_refusal_is_an_error_that_says_what_was_asked() -> None:
    with tiny(()) as peer:
        with pytest.raises(RuntimeError, match="POST /models/m0/invoke: 404"):
            peer.ask("m0", "hello")
        peer.load("m0")
        peer.ask("m0", "hello")


@pytest.mark.slow
def test_memory_is_counted_for_each_model_and_after_all_have_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_peers, "CGROUP", tmp_path)  # no limits: what fits is not asked here
    found = memory_peers._measure("tiny", tiny, NAMES, lambda _name, _parts: lambda: None)
    assert found["tiny_mb_per_model"] == pytest.approx(8.0, abs=0.5)
    assert found["tiny_memory_after_unload_ratio"] == pytest.approx(1.0, abs=0.1)
    assert found["tiny_after_unload_all_mb"] == pytest.approx(found["tiny_empty_mb"], abs=3.0)


def test_the_model_that_peers_serve_gives_our_vectors(tmp_path: Path) -> None:
    stored = imported(TensorStore(tmp_path / "store"), write_checkpoint(tmp_path / "checkpoint"))
    memory_peers._write(tmp_path / "peer", stored)
    names: dict[str, Any] = {}
    exec(memory_peers._ENCODER, names)  # what a peer's Python backend runs
    text = "the order has not arrived yet"
    theirs = names["Encoder"](str(tmp_path / "peer"))(text)
    ours = MappedBackend(concurrent_runs=1).load(stored).run(text_call(text))
    assert np.allclose(theirs[0], ours.output("embedding").data[0], atol=1e-5)
