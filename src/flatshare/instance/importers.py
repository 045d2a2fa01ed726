"""The processes that bring models here: a few for what somebody waits for, one for what is fetched ahead. They retire when idle."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

from flatshare.core.call import Urgency
from flatshare.core.errors import StoreUnavailable
from flatshare.core.ids import ArtifactUri
from flatshare.instance.importing import Imported, ImportJob, die_with_parent, import_artifact
from flatshare.instance.turnstile import Claim, Turnstile

_RETIRE_AFTER_S = 20.0  # an import process holds 60 MB; it starts in half a second


class Importers:
    """Owned by the event loop. Imports that are waited for take turns by fair share among tenants."""

    def __init__(self, parallel: int) -> None:
        self._lanes = {Urgency.DEMAND: _Lane(parallel, Urgency.DEMAND), Urgency.AHEAD: _Lane(1, Urgency.AHEAD)}
        self._ahead: dict[ArtifactUri, list[asyncio.Task[Imported]]] = {}
        """Two may be after one artifact: the one that looks what will be wanted, and a request whose time was too short."""
        self._hastened: set[asyncio.Task[Imported]] = set()

    async def run(self, job: ImportJob, claim: Claim) -> Imported:
        """Raises what `import_artifact` raises, and StoreUnavailable if its process died."""
        if job.urgency is Urgency.DEMAND:
            return await self._lanes[Urgency.DEMAND].run(job, claim)
        attempt = asyncio.get_running_loop().create_task(self._lanes[Urgency.AHEAD].run(job, claim))
        attempts = self._ahead.setdefault(job.uri, [])
        attempts.append(attempt)
        try:
            return await attempt
        except asyncio.CancelledError:
            if attempt not in self._hastened:
                raise
            return await self._lanes[Urgency.DEMAND].run(replace(job, urgency=Urgency.DEMAND), claim)
        finally:
            self._hastened.discard(attempt)
            attempts.remove(attempt)
            if not attempts:
                del self._ahead[job.uri]

    def hasten(self, uri: ArtifactUri) -> None:
        """Somebody waits now for what was to be fetched ahead: it goes on among the others that are waited for, where it stopped."""
        for attempt in self._ahead.get(uri, ()):
            if not attempt.done() and attempt not in self._hastened:
                self._hastened.add(attempt)
                attempt.cancel()

    def pids(self) -> list[int]:
        """Of the processes that are there now."""
        return [pid for lane in self._lanes.values() for seat in lane.seats for pid in seat.pids()]

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()


class _Lane:
    """So many imports at a time, each in a process of its own: one that dies takes no other with it."""

    def __init__(self, places: int, urgency: Urgency) -> None:
        self.seats = [_Seat(urgency) for _ in range(places)]
        self._free = list(self.seats)
        self._turns = Turnstile(places)
        self._retirement: asyncio.TimerHandle | None = None

    async def run(self, job: ImportJob, claim: Claim) -> Imported:
        async with self._turns.turn(claim):
            seat = self._free.pop()
            try:
                return await seat.run(job)
            finally:
                self._free.append(seat)
                self._retire_later()

    def close(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
        for seat in self.seats:
            seat.kill()

    def _retire_later(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
        self._retirement = asyncio.get_running_loop().call_later(_RETIRE_AFTER_S, self._retire)

    def _retire(self) -> None:
        for seat in self._free:
            seat.retire()


class _Seat:
    """One process, if there is work for it."""

    def __init__(self, urgency: Urgency) -> None:
        self._prepare: Callable[[], None] = partial(die_with_parent, urgency)
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, job: ImportJob) -> Imported:
        """A process cannot be told to stop: if the wait for it is cancelled, it is killed, and what it fetched stays for the next."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=self._prepare)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, import_artifact, job)
        except asyncio.CancelledError:
            self.kill()
            raise
        except BrokenProcessPool as error:
            self._pool = None
            raise StoreUnavailable(
                f"the process that imported {job.uri} died (out of memory, or killed): call again to try once more"
            ) from error

    def pids(self) -> list[int]:
        return list(self._pool._processes) if self._pool is not None else []

    def retire(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def kill(self) -> None:
        """An import under way must not delay an exit."""
        if self._pool is None:
            return
        for process in list(self._pool._processes.values()):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
