"""Step 5f: load a model that has its reservation, and learn from it how much private memory it takes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from flatshare.core.errors import BadPackage, StoreUnavailable
from flatshare.core.ids import ModelKey
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Backend, LoadedModel, RemoteBackend, RemoteModel
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.board import Board, Marked
from flatshare.instance.books import Books, Reservation, anonymous_bytes
from flatshare.instance.finding import Finder
from flatshare.policy import footprint


class Loader:
    """`is_quiet(key)` says whether nothing happens in the instance but the load of that model."""

    def __init__(
        self, backend: Backend, finder: Finder, books: Books, threads: Executor, board: Board | None, is_quiet: Callable[[ModelKey], bool]
    ) -> None:
        self._backend = backend
        self._finder = finder
        self._books = books
        self._threads = threads
        self._board = board
        self._is_quiet = is_quiet
        self.activity = 0
        """Counts leases of loaded models: memory is only measured while nothing ran."""

    def reservation(self, stored: StoredModel) -> Reservation:
        """What a load would take: predicted, corrected by what was measured."""
        predicted = self._backend.footprint(stored)
        own_bytes = footprint.own_bytes(predicted.own_bytes, stored.measured_own_bytes)
        return Reservation(replace(predicted, own_bytes=own_bytes), stored.manifest.distinct_pieces)

    async def load(self, key: ModelKey, stored: StoredModel) -> LoadedModel | RemoteModel:
        """The reservation goes with the load if it fails."""
        try:
            if isinstance(self._backend, RemoteBackend) and (remote := await self._backend.load_remote(stored)) is not None:
                if self._board is not None:
                    remote.mark_runs(partial(Marked, key=key, board=self._board))
                return remote
            return await self._measured(key, stored)
        except FileNotFoundError as error:  # a collection of the store took or moved it between finding and loading
            self._books.release(key)
            raise StoreUnavailable(f"the model left this machine's disk while it was loaded ({error.filename}): call again") from error
        except Exception:
            self._books.release(key)
            raise
        except BaseException as error:  # a panic in the tokenizers' Rust is no Exception; cancellation is
            self._books.release(key)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise BadPackage(f"loading the model ended in a panic: {error}") from error

    async def _measured(self, key: ModelKey, stored: StoredModel) -> LoadedModel:
        """Load, and if nothing else happened meanwhile, remember what the model took: the next reservation is better for it."""
        before, activity = anonymous_bytes(), self.activity
        is_alone = self._books.has_only_known_shares(key) and self._is_quiet(key)
        model = await asyncio.get_running_loop().run_in_executor(self._threads, self._load_marked, key, stored)
        took_bytes = anonymous_bytes() - before
        if is_alone and activity == self.activity and self._is_quiet(key) and took_bytes > (stored.measured_own_bytes or -1):
            self._finder.remember_footprint(stored.manifest.digest, max(0, took_bytes))
        return model

    def _load_marked(self, key: ModelKey, stored: StoredModel) -> LoadedModel:
        """On a loader thread: whoever finds the instance dead knows what it was doing."""
        if self._board is None:
            return self._backend.load(stored)
        with self._board.marked(key):
            model = self._backend.load(stored)
        if isinstance(model, GeneratingModel):  # many calls share its runs, which are the stepper's: each turn is on the board
            model.mark_turns(partial(self._board.marked, key))
            return model
        return Marked(model, key, self._board)
