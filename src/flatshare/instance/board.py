"""What an instance does at this moment, written where its death cannot erase it: a few bytes of a mapped file for each load and run.

When an instance has died, the next one reads what was under way: those models are suspects (policy/quarantine.py).
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatshare.core.call import InferCall, InferResult
from flatshare.core.ids import ModelKey
from flatshare.core.signature import Signature
from flatshare.instance.backends.base import LoadedModel, StopSign

_SLOT, _SLOTS = 64, 256  # a key has 32 characters, or up to 64 that somebody else chose


class Board:
    """One file of this process, locked as long as it lives. A mark costs a microsecond: the kernel keeps the page, not the disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(self._file, 0, _SLOT * _SLOTS)  # all of it: a mark on a full disk would be SIGBUS
        self._map = mmap.mmap(self._file, _SLOT * _SLOTS)
        self._free = list(range(_SLOTS))

    @contextmanager
    def marked(self, key: ModelKey) -> Iterator[None]:
        """While this lasts, the model is under way. From any thread."""
        slot = self.mark(key)
        try:
            yield
        finally:
            self.clear(slot)

    def mark(self, key: ModelKey) -> int | None:
        """The model is under way until the mark is cleared. None: the board is full."""
        try:
            slot = self._free.pop()  # one step of the interpreter, so it needs no lock
        except IndexError:
            return None
        self._map[slot * _SLOT : (slot + 1) * _SLOT] = key.encode()[:_SLOT].ljust(_SLOT, b"\0")
        return slot

    def clear(self, slot: int | None) -> None:
        if slot is not None:
            self._map[slot * _SLOT : (slot + 1) * _SLOT] = bytes(_SLOT)
            self._free.append(slot)

    def close(self) -> None:
        """At a regular end: nothing was under way."""
        self._path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._file)


def left_behind(folder: Path, name: str) -> Iterator[frozenset[ModelKey]]:
    """What each dead instance of this name was doing when it died; its board is taken away."""
    for path in sorted(folder.glob(f"{name}.*.board")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it lives
            found = file.read()
        path.unlink(missing_ok=True)
        slots = (found[begin : begin + _SLOT].rstrip(b"\0") for begin in range(0, len(found), _SLOT))
        yield frozenset(ModelKey(slot.decode("ascii", "replace")) for slot in slots if slot)


class Marked:
    """A model whose runs are on the board. All else is the model's own."""

    __slots__ = ("__weakref__", "_board", "_key", "_model")

    def __init__(self, model: LoadedModel, key: ModelKey, board: Board) -> None:
        self._model = model
        self._key = key
        self._board = board

    @property
    def signature(self) -> Signature:
        return self._model.signature

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        slot = self._board.mark(self._key)
        try:
            return self._model.run(call, stop)
        finally:
            self._board.clear(slot)

    def __getattr__(self, name: str) -> Any:
        """What some engines' models have beyond `run`, on the board too if it can be called."""
        found = getattr(self._model, name)
        if not callable(found):
            return found

        def marked(*values: Any, **named: Any) -> Any:
            with self._board.marked(self._key):
                return found(*values, **named)

        return marked


def unmarked(model: Any) -> Any:
    """The model itself, whose runs may be on the board."""
    return model._model if isinstance(model, Marked) else model
