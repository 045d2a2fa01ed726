"""After a death: what was under way is known, runs alone until it is cleared, and is shut out if it kills again."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from flatshare.core.clock import ManualClock
from flatshare.core.errors import BadInput, Quarantined
from flatshare.core.ids import ModelKey
from flatshare.instance.board import Board, Marked, left_behind
from flatshare.instance.quarantine import Quarantine
from tests.calls import text_call
from tests.instance.test_workbench import Counting

POISON, OTHER = ModelKey("p" * 32), ModelKey("o" * 32)
_DIES = """
import os, signal, sys
from pathlib import Path
from flatshare.instance.board import Board
board = Board(Path(sys.argv[1]))
with board.marked("harmless"):
    pass
with board.marked(sys.argv[2]), board.marked(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, *keys: str, number: int = 1) -> None:
    """A process that is killed while these are under way."""
    path = folder / f"name.{number}.board"
    done = subprocess.run([sys.executable, "-c", _DIES, str(path), keys[0], keys[-1]], check=False, env=dict(os.environ), timeout=60)
    assert done.returncode == -signal.SIGKILL


class TestBoard:
    def test_what_was_under_way_at_a_sigkill_is_known_and_what_had_ended_is_not(self, tmp_path: Path) -> None:
        die(tmp_path, POISON, OTHER)
        assert list(left_behind(tmp_path, "name")) == [frozenset({POISON, OTHER})]
        assert list(left_behind(tmp_path, "name")) == [], "a death is counted once"

    def test_the_board_of_one_who_lives_is_left_alone(self, tmp_path: Path) -> None:
        board = Board(tmp_path / "name.1.board")
        with board.marked(POISON):
            assert list(left_behind(tmp_path, "name")) == []
        board.close()
        assert list(tmp_path.iterdir()) == []

    def test_more_at_once_than_it_holds_does_no_harm(self, tmp_path: Path) -> None:
        board = Board(tmp_path / "name.1.board")

        def nested(depth: int) -> None:
            if depth:
                with board.marked(POISON):
                    nested(depth - 1)

        nested(300)
        nested(300)
        board.close()

    def test_a_model_s_runs_are_on_it_and_all_else_is_the_model_s_own(self, tmp_path: Path) -> None:
        board, model = Board(tmp_path / "name.1.board"), Counting()
        marked = Marked(model, POISON, board)
        assert marked.signature is model.signature
        assert marked.run(text_call("abc")).parameters["tokens"] == (3,)
        assert not hasattr(marked, "stream")
        assert marked.texts == ["abc"]
        board.close()


def guard_of(quarantine: Quarantine, suspect: ModelKey) -> AbstractAsyncContextManager[None]:
    guard = quarantine.guard(suspect)
    assert guard is not None
    return guard


class TestQuarantine:
    def quarantine(self, folder: Path, clock: ManualClock | None = None) -> Quarantine:
        return Quarantine(folder, "name", clock or ManualClock())

    async def visit(self, quarantine: Quarantine, key: ModelKey) -> None:
        guard = quarantine.guard(key)
        if guard is not None:
            async with guard:
                pass

    async def test_a_suspect_is_cleared_by_a_run_that_ends(self, tmp_path: Path) -> None:
        die(tmp_path, POISON, OTHER)
        quarantine = self.quarantine(tmp_path)
        assert set(quarantine.records()) == {POISON, OTHER}
        await self.visit(quarantine, OTHER)
        with pytest.raises(BadInput):
            async with guard_of(quarantine, POISON):
                raise BadInput("an error is no crash")
        assert quarantine.records() == {}
        assert self.quarantine(tmp_path).records() == {}

    async def test_suspects_run_one_at_a_time_and_others_as_they_like(self, tmp_path: Path) -> None:
        die(tmp_path, POISON, OTHER)
        quarantine = self.quarantine(tmp_path)
        async with guard_of(quarantine, POISON):
            other = asyncio.create_task(self.visit(quarantine, OTHER))
            await self.visit(quarantine, ModelKey("unsuspected"))
            await asyncio.sleep(0)
            assert not other.done()
        await other

    async def test_one_that_kills_again_and_again_is_shut_out_for_a_while(self, tmp_path: Path) -> None:
        clock = ManualClock()
        for number in range(3):
            self.quarantine(tmp_path, clock)
            die(tmp_path, POISON, number=number)
        quarantine = self.quarantine(tmp_path, clock)
        with pytest.raises(Quarantined, match="shut out for another 600 s"):
            await self.visit(quarantine, POISON)
        clock.advance(601)
        await self.visit(quarantine, POISON)

    def test_a_file_that_cannot_be_read_is_no_reason_not_to_start(self, tmp_path: Path) -> None:
        (tmp_path / "name.suspects.json").write_bytes(b"{broken")
        assert self.quarantine(tmp_path).records() == {}


def test_marks_from_many_threads_end_with_an_empty_board(tmp_path: Path) -> None:
    board = Board(tmp_path / "name.1.board")

    def work(number: int) -> None:
        for _ in range(200):
            with board.marked(ModelKey(f"key {number}")):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not (tmp_path / "name.1.board").read_bytes().strip(b"\0")
    board.close()
