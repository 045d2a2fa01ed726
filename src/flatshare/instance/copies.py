"""Step 5g: prepacked copies of models in memory: faster for short texts, private memory, and the first to leave.

A copy is in the books under a key of its own, and a resident of its own for the policies (policy/evict.py). It is never lent out: a run
that finds it gone takes the mapped weights. instance/promote.py decides who gets one.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from flatshare.core.call import ModelSource
from flatshare.core.clock import Clock
from flatshare.core.ids import ModelKey
from flatshare.core.sizes import format_size
from flatshare.instance.backends.base import Footprint, Packable
from flatshare.instance.board import Board
from flatshare.instance.books import Books, Reservation
from flatshare.instance.holding import Resting
from flatshare.policy.promote import Trial
from flatshare.telemetry.journal import Entry, Journal
from flatshare.telemetry.log import get_logger

log = get_logger("copies")
PREPACKING = ModelKey("prepacking")
"""What the board says while a copy is made: if that kills the instance, it is not the model's fault."""


@dataclass(slots=True)
class PackedCopy:
    """One that is in use, or being made."""

    of: ModelKey
    source: ModelSource
    model: Packable
    used_s: float
    is_ready: bool = False
    gain: float = 0.0
    """Seconds saved per second, as of the last look."""


class Copies:
    """Owned by the cache."""

    def __init__(self, books: Books, clock: Clock, journal: Journal, board: Board | None, changed: Callable[[], None]) -> None:
        """`changed` is called when something is given back."""
        self._books = books
        self._clock = clock
        self._journal = journal
        self._board = board
        self._changed = changed
        self._copies: dict[ModelKey, PackedCopy] = {}
        self.pushed_out_s = float("-inf")
        """When one left last because room was needed."""

    def get(self, key: ModelKey) -> PackedCopy | None:
        """By its own key in the books."""
        return self._copies.get(key)

    def __contains__(self, key: ModelKey) -> bool:
        """Whether this is the key of a copy."""
        return key in self._copies

    def __iter__(self) -> Iterator[tuple[ModelKey, PackedCopy]]:
        """Those in use, by their keys in the books."""
        return ((key, copy) for key, copy in self._copies.items() if copy.is_ready)

    def of(self, key: ModelKey) -> PackedCopy | None:
        """A model's copy, if it is in use or being made."""
        return self.get(copy_key(key))

    @property
    def is_making(self) -> bool:
        return any(not copy.is_ready for copy in self._copies.values())

    def taken_bytes(self, key: ModelKey) -> int:
        """By a model's copy."""
        mine = copy_key(key)
        return self._books.reservation(mine).footprint.own_bytes if mine in self._copies else 0

    async def make(self, resting: Resting, footprint: Footprint, known: Trial | None, reason: str) -> Trial:
        """Make one, for which there is room. It stays in use if its trial, with what is `known` from earlier ones, says that it pays.

        The model cannot leave meanwhile. Raises UnsupportedModel, and what the engine raises; then nothing is left of it.
        """
        began_s, mine = self._clock.monotonic_s(), copy_key(resting.key)
        copy = self._copies[mine] = PackedCopy(resting.key, resting.source, resting.model, began_s)
        self._books.reserve(mine, Reservation(footprint, {}, is_copy=True))
        resting.held.leases += 1
        try:
            trial = (await asyncio.to_thread(self._make_marked, resting.model)).with_another(known)
            if not trial.pays:
                await asyncio.to_thread(resting.model.drop_copy)
            copy.is_ready = trial.pays
        finally:
            resting.held.leases -= 1
            if not copy.is_ready:
                self._strike(mine)
            self._changed()
        times = f"{trial.mapped_s / trial.copy_s:.2f} times as fast as the mapped weights"
        self._note("prepack" if trial.pays else "give_up", resting.source.uri, f"{reason}; its copy is {times}", began_s)
        return trial

    async def drop(self, key: ModelKey, reason: str) -> None:
        """A copy, by its own key, or nothing. Its memory is free when this returns."""
        copy = self._copies.get(key)
        if copy is None or not copy.is_ready:
            return
        copy.is_ready = False  # nobody drops it twice
        began_s = self._clock.monotonic_s()
        await asyncio.to_thread(copy.model.drop_copy)
        freed = format_size(self._books.reservation(key).footprint.own_bytes)
        self._strike(key)
        self._changed()
        self._note("drop_copy", copy.source.uri, f"{reason}; {freed} of private memory are free again", began_s)

    async def make_room(self, key: ModelKey, reason: str) -> None:
        """Drop it because somebody needs the room, which says that there is none to spare."""
        self.pushed_out_s = self._clock.monotonic_s()
        await self.drop(key, reason)

    def _make_marked(self, model: Packable) -> Trial:
        marked: AbstractContextManager[None] = nullcontext() if self._board is None else self._board.marked(PREPACKING)
        with marked:
            return model.make_copy()

    def _strike(self, key: ModelKey) -> None:
        del self._copies[key]
        self._books.release(key)

    def _note(self, kind: str, uri: str, reason: str, began_s: float) -> None:
        took_ms = 1e3 * (self._clock.monotonic_s() - began_s)
        self._journal.note(Entry(self._clock.wall_s(), kind, uri, reason, took_ms))
        log.info(f"model_{kind}", uri=uri, reason=reason, took_ms=round(took_ms, 1))


def copy_key(key: ModelKey) -> ModelKey:
    """The books' key for a model's copy: no model has one with a space."""
    return ModelKey(f"{key} copy")
