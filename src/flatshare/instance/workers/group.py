"""The workers of one code version, and the models that live in them.

A model lives in one worker (in as many as its instance groups say), which has its files loaded; a request waits for a turn there. A
model that would wait behind others while another worker has nothing to do moves there. A worker that dies is replaced, and its models
come back.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from flatshare.core.errors import FlatshareError, ModelFailed, WorkerDied
from flatshare.core.ids import Tenant
from flatshare.core.settings import WorkerSettings
from flatshare.instance.workers import runs
from flatshare.instance.workers.process import WorkerProcess
from flatshare.instance.workers.records import Model, Rider
from flatshare.instance.workers.seats import Seat
from flatshare.policy import workers as policy
from flatshare.policy.workers import Action, WorkerLoad
from flatshare.pyworker.frames import Frame
from flatshare.telemetry.log import get_logger

log = get_logger("workers")


class Group:
    """Made and used on the event loop. `start` gives a worker; `on_failure` hears which model brought one down, and how; `check`
    raises if a model must not be loaded now; `weight` is a tenant's share of the workers.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        start: Callable[[Path | None], Awaitable[WorkerProcess]],
        on_failure: Callable[[Model, str], None],
        check: Callable[[Model], None],
        weight: Callable[[Tenant], float],
    ) -> None:
        self._settings = settings
        self._start = start
        self._on_failure = on_failure
        self._check = check
        self._weight = weight
        self._seats: list[Seat] = []
        self._homes: dict[Model, list[Seat]] = {}
        self._placing = asyncio.Lock()
        self._waiting: list[tuple[Model, asyncio.Future[None]]] = []
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[int, tuple[Rider, Model, Seat]] = {}

    @property
    def is_empty(self) -> bool:
        return not self._homes

    @property
    def workers(self) -> list[WorkerProcess]:
        return [seat.worker for seat in self._seats if seat.is_alive]

    def has(self, worker: WorkerProcess) -> bool:
        return any(seat.worker is worker for seat in self._seats)

    def model(self, key: str) -> Model | None:
        return next((model for model in self._homes if model.place.key == key), None)

    async def add(self, model: Model) -> None:
        """Load it. Raises ModelFailed, WorkerDied."""
        self._homes[model] = []
        try:
            await self._loaded_seat(model, frozenset())
        except BaseException:
            await self.remove(model)
            raise

    async def remove(self, model: Model) -> None:
        """Out of every worker; its memory is free when this returns. The last one takes the workers along."""
        model.is_leaving = True
        homes = self._homes.pop(model, [])
        for rider in model.queue:
            rider.fail(ModelFailed(f"model '{model.place.unit.model}' was unloaded"))
        if self.is_empty:
            await self.close()
            return
        for seat in {seat for seat in (*homes, *self._seats) if model in seat.loaded}:
            await self._unload(seat, model)

    def ride(self, model: Model, rider: Rider) -> None:
        """Put the request in line, and see that somebody serves the line."""
        model.tenant = rider.ask.tenant
        model.queue.append(rider)
        model.grew.set()
        model.used_s = asyncio.get_running_loop().time()
        if model.runners < max(1, model.config.copies):
            model.runners += 1
            self._spawn(self._serve(model))

    async def close(self) -> None:
        for task in tuple(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        seats, self._seats = self._seats, []
        await asyncio.gather(*(seat.worker.stop() for seat in seats))

    def ended(self, worker: WorkerProcess) -> None:
        """A worker is no more: whoever was in it hears why, another takes its place."""
        seat = next((seat for seat in self._seats if seat.worker is worker), None)
        if seat is None:
            return  # it was asked to go
        self._seats.remove(seat)
        lost = [model for model, homes in self._homes.items() if seat in homes]
        for homes in self._homes.values():
            if seat in homes:
                homes.remove(seat)
        self._wake()
        culprit = self._blame(seat, worker.end or "")
        log.warning("worker_ended", worker=worker.name, reason=worker.end, models=len(lost))
        self._spawn(self._restore([model for model in lost if model is not culprit]))  # that one comes back when somebody asks for it

    def part(self, frame: Frame) -> None:
        """A decoupled model sent a response."""
        number = frame.fields["request"]
        found = self._open.get(number)
        if found is not None and runs.part(frame, found[0], found[1].place.unit.model):
            self._open.pop(number)

    def cancel(self, number: int) -> None:
        """The caller has left: a model that asks `is_cancelled` hears it."""
        found = self._open.pop(number, None)
        if found is not None:
            found[2].worker.tell("cancel", request=number)

    async def replace_leaking(self) -> None:
        """Move models out of workers that have grown too much while they ran, and let those workers go."""
        for seat in [seat for seat in self._seats if seat.is_alive and seat.growth_bytes > self._settings.leak_bytes]:
            log.warning("worker_leaks", worker=seat.worker.name, grown_bytes=seat.growth_bytes, models=len(seat.loaded))
            self._seats.remove(seat)
            lost = [model for model, homes in self._homes.items() if seat in homes]
            for model in lost:
                self._homes[model].remove(seat)
            if len(lost) == 1:
                self._on_failure(lost[0], f"its worker grew by {seat.growth_bytes} bytes")
            self._spawn(self._restore(lost))
            await seat.until_idle()
            await seat.worker.stop()

    # One model's line.

    async def _serve(self, model: Model) -> None:
        """Serve a model's line until nobody waits."""
        try:
            while model.queue and not model.is_leaving:
                await self._one_turn(model)
                await asyncio.sleep(0)  # those who have waited for the worker go first
        finally:
            model.runners -= 1
            if model.queue and not model.is_leaving and model.runners == 0:
                model.runners += 1  # somebody came in the turn of the last answer
                self._spawn(self._serve(model))

    async def _one_turn(self, model: Model) -> None:
        riders: list[Rider] = []
        try:
            await runs.until_filled(model)
            if not model.queue:
                return
            seat = await self._free_seat(model, model.queue[0].ask.chain)
            async with seat.turn(model, is_run=True):
                if not seat.is_alive or model not in seat.loaded:
                    return  # it died, or the model moved, while we waited: look again
                riders = runs.take(model)
                if riders:
                    await self._run(seat, model, riders)
        except FlatshareError as error:
            for rider in riders or runs.all_of(model):
                rider.fail(error)
        finally:
            for rider in riders:
                if rider.number not in self._open:
                    rider.fail(ModelFailed("the instance stops"))  # does nothing if it has its answer

    async def _run(self, seat: Seat, model: Model, riders: list[Rider]) -> None:
        """A decoupled model may answer before, while and after `execute` runs."""
        if model.config.is_decoupled:
            self._open |= {rider.number: (rider, model, seat) for rider in riders}
        model.chain = frozenset({model.place.key}).union(*(rider.ask.chain for rider in riders))
        try:
            await runs.run(seat, model, riders, self._settings.run_s)
        except FlatshareError:
            for rider in riders:
                self._open.pop(rider.number, None)
            raise
        for rider in riders:
            if rider.done.done():
                self._open.pop(rider.number, None)
            elif rider.number in self._open:
                asyncio.get_running_loop().call_later(self._settings.run_s, self._expire, rider.number)

    def _expire(self, number: int) -> None:
        found = self._open.pop(number, None)
        if found is not None:
            rider, model, seat = found
            seat.worker.tell("cancel", request=number)
            rider.fail(ModelFailed(f"model '{model.place.unit.model}' did not send its final response within {self._settings.run_s:g} s"))

    async def _free_seat(self, model: Model, chain: frozenset[str]) -> Seat:
        """Where the model is loaded and nothing runs now. Whenever some worker has become free, the choice is made again."""
        while True:
            seat = await self._loaded_seat(model, chain)
            if not seat.is_busy:
                return seat
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((model, place))
            with suppress(TimeoutError):
                async with asyncio.timeout(model.look_again_s):
                    await place

    def _wake(self) -> None:
        """Everybody who waits looks again: first those whose tenants had least for their weight, then by when they came."""
        waiting = [(model, place) for model, place in self._waiting if not place.done()]
        self._waiting = []
        served_s: defaultdict[Tenant, float] = defaultdict(float)
        for model in self._homes:
            served_s[model.tenant] += model.work.recent_s
        for index in policy.turns([model.tenant for model, _ in waiting], served_s, self._weight):
            waiting[index][1].set_result(None)

    async def _loaded_seat(self, model: Model, chain: frozenset[str]) -> Seat:
        """A worker where the model is loaded, and that does not itself wait for this request."""
        while True:
            seat = await self._seat(model, chain)
            if model in seat.loaded:
                return seat
            async with seat.turn(model):
                if seat.is_alive and model not in seat.loaded and not model.is_leaving:
                    await self._load(seat, model)

    async def _load(self, seat: Seat, model: Model) -> None:
        self._check(model)
        try:
            await runs.load(seat.worker, model, self._settings.load_s)
        except ModelFailed:
            homes = self._homes.get(model, [])
            if seat in homes:
                homes.remove(seat)
            raise
        seat.loaded.add(model)
        seat.base_bytes = seat.worker.anonymous_bytes

    # Which worker.

    async def _seat(self, model: Model, chain: frozenset[str]) -> Seat:
        homes = self._homes.setdefault(model, [])
        blocked = {seat for seat in self._seats if seat.running is not None and seat.running.place.key in chain}
        free = [seat for seat in homes if seat not in blocked and seat.is_alive]
        if not free:
            return await self._new_home(model, blocked)
        own = min(free, key=lambda seat: seat.is_busy)
        if own.is_busy and len(homes) < model.config.copies:
            return await self._another_copy(model, own, blocked)
        return self._better_than(own, model, blocked)

    def _better_than(self, own: Seat, model: Model, blocked: set[Seat]) -> Seat:
        """The policy's choice: here, or a worker with nothing to do."""
        others = [seat for seat in self._seats if seat is not own and seat.is_alive and seat not in blocked]
        now = asyncio.get_running_loop().time()
        waiting = policy.Waiting(model.work.recent_s, now - model.moved_s, is_behind_itself=own.running is model)
        choice = policy.choose(self._load_of(own), [self._load_of(seat) for seat in others], waiting, most=self._settings.most)
        model.look_again_s = choice.again_s
        if choice.action is Action.START and self._starting is None:
            self._starting = self._spawn(self._grow(model))
        if choice.action is not Action.MOVE:
            return own
        target = next(seat for seat in others if seat.worker.name == choice.worker)
        model.moved_s = now
        self._homes[model] = [target if seat is own else seat for seat in self._homes[model]]
        self._spawn(self._unload(own, model))
        return target

    async def _another_copy(self, model: Model, own: Seat, blocked: set[Seat]) -> Seat:
        """For a model of several instances: an idle worker without it, or a new one."""
        homes = self._homes[model]
        idle = [seat for seat in self._seats if seat not in homes and seat not in blocked and seat.is_alive and not seat.is_busy]
        if not idle and len(self._seats) >= max(self._settings.most, 1):
            return own
        seat = idle[0] if idle else await self._new_seat(model)
        homes.append(seat)
        return seat

    async def _new_home(self, model: Model, blocked: set[Seat]) -> Seat:
        async with self._placing:
            homes = self._homes.setdefault(model, [])
            known = [seat for seat in homes if seat.is_alive and seat not in blocked]
            if known:
                return known[0]
            open_seats = [seat for seat in self._seats if seat.is_alive and seat not in blocked]
            name = policy.home([self._load_of(seat) for seat in open_seats])
            seat = next((seat for seat in open_seats if seat.worker.name == name), None) or await self._new_seat(model)
            homes.append(seat)
            return seat

    async def _grow(self, model: Model) -> None:
        try:
            await self._new_seat(model)
        except WorkerDied as error:
            log.warning("worker_not_started", reason=str(error))
        finally:
            self._starting = None

    async def _new_seat(self, model: Model) -> Seat:
        seat = Seat(await self._start(model.place.python), self._wake)
        self._seats.append(seat)
        self._wake()
        return seat

    def _load_of(self, seat: Seat) -> WorkerLoad:
        """Of a model that lives in several workers, each has its part of the work."""
        living = [(model, len(homes)) for model, homes in self._homes.items() if seat in homes]
        return WorkerLoad(seat.worker.name, len(living), seat.is_busy, sum(model.work.recent_s / homes for model, homes in living))

    # Leaving.

    async def _unload(self, seat: Seat, model: Model) -> None:
        async with seat.turn(model):
            if model in seat.loaded and (model not in self._homes or seat not in self._homes[model]):
                seat.loaded.discard(model)
                if seat.is_alive:
                    await runs.unload(seat.worker, model, self._settings.run_s)

    def _blame(self, seat: Seat, reason: str) -> Model | None:
        """Whoever was being served hears why; the model that did it is remembered."""
        for number, (rider, model, where) in tuple(self._open.items()):
            if where is seat:
                del self._open[number]
                rider.fail(WorkerDied(f"model '{model.place.unit.model}' was answering in parts when its worker process ended: {reason}"))
        culprit = seat.running or (next(iter(seat.loaded)) if len(seat.loaded) == 1 else None)
        if culprit is not None:
            self._on_failure(culprit, reason)
        return culprit

    async def _restore(self, models: list[Model]) -> None:
        """The most recently used first. One that does not come back says so to its next request."""
        for model in sorted(models, key=lambda model: -model.used_s):
            try:
                if model in self._homes and not model.is_leaving:
                    await self._loaded_seat(model, frozenset())
            except FlatshareError as error:
                log.warning("model_not_restored", model=model.place.unit.model, reason=str(error))

    def _spawn(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task
