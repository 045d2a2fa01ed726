"""The one thread that runs generating models: a step of this one, a step of that one, so that all have their share of the cores.

One step runs at a time and may use every core. Between steps, texts join and leave, whoever has left is dropped, and the next model
has its turn. What is sent in passes through a queue; everything else belongs to the thread.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from flatshare.core.errors import Overloaded
from flatshare.instance.backends.generate.job import Job
from flatshare.instance.backends.generate.lane import Lane
from flatshare.instance.backends.generate.memory import CacheMemory
from flatshare.instance.backends.generate.network import Network
from flatshare.policy import turns
from flatshare.telemetry.log import get_logger

log = get_logger("generate")
Mark = Callable[[], AbstractContextManager[None]]
"""Around a model's turn: whoever finds the process dead knows whose it was."""


@dataclass(frozen=True, slots=True)
class StepperStatistics:
    """What has been done since the start, and what is held now."""

    steps: int
    rows_stepped: int
    row_bytes: int
    session_bytes: int
    sessions: int
    jobs: int


class Stepper:
    """Runs jobs. `submit`, `forget_model` and `statistics` from any thread."""

    def __init__(self, memory_bytes: int, *, max_jobs: int) -> None:
        self.memory = CacheMemory(memory_bytes)
        self._places = threading.BoundedSemaphore(max_jobs)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lanes: dict[int, Lane] = {}
        self._networks: dict[int, Network] = {}
        self._marks: dict[int, Mark] = {}
        self._used_s: dict[int, float] = {}
        self._jobs: set[Job] = set()
        self._steps = self._rows_stepped = 0
        self._thread = threading.Thread(target=self._work, name="stepper", daemon=True)
        self._thread.start()

    def submit(self, model: int, network: Network, job: Job, mark: Mark = nullcontext) -> None:
        """Write what the job asks for. Raises Overloaded."""
        if not self._places.acquire(blocking=False):
            raise Overloaded("too many texts are being written on this instance, or wait: call again later, or add instances")
        self._inbox.put(lambda: self._take(model, network, job, mark))

    def wake(self) -> None:
        """Something was cancelled: look at it now, not at the end of a wait."""
        self._inbox.put(_nothing)

    def forget_model(self, model: int) -> None:
        """The model has left memory, and its sessions with it."""
        self._inbox.put(lambda: self.memory.forget_model(model))

    def statistics(self) -> StepperStatistics:
        memory = self.memory
        return StepperStatistics(self._steps, self._rows_stepped, memory.row_bytes, memory.session_bytes, memory.sessions, len(self._jobs))

    def close(self) -> None:
        """Finish the step under way, and stop."""
        self._inbox.put(None)
        self._thread.join()

    # The thread.

    def _work(self) -> None:
        has_work = False
        while self._receive(must_wait=not has_work):
            has_work = self._go_on()

    def _go_on(self) -> bool:
        """One turn. Whether there is anything left to do."""
        for model in self._lanes:
            self._guarded(model, Lane.make_ready)
        ready = {model: used_s for model, used_s in self._used_s.items() if self._lanes[model].has_work}
        if ready:
            self._turn(turns.next_turn(ready))
        self._forget_ended()
        return bool(self._lanes)

    def _receive(self, *, must_wait: bool) -> bool:
        """What has come in; waits for it if there is nothing else to do. False when told to stop."""
        while must_wait or not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                return False
            message()
            must_wait = False
            del message  # it holds a model
        return True

    def _take(self, model: int, network: Network, job: Job, mark: Mark) -> None:
        self._jobs.add(job)
        if model not in self._lanes:
            self._used_s[model] = turns.first_use_s(self._used_s)
            self._lanes[model] = Lane(model, network, self.memory)
            self._networks[model], self._marks[model] = network, mark
        self._lanes[model].add(job)

    def _turn(self, model: int) -> None:
        began_s = time.perf_counter()
        with self._marks[model]():
            self._guarded(model, Lane.turn)
        self._used_s[model] += time.perf_counter() - began_s

    def _guarded(self, model: int, act: Callable[[Lane], None]) -> None:
        """What goes wrong with one model ends what is written with it, and nothing else."""
        lane = self._lanes[model]
        try:
            act(lane)
        except Exception as error:
            log.exception("generation_failed")
            lane.fail(error)

    def _forget_ended(self) -> None:
        """Jobs that are over, and lanes in which nothing is left to write."""
        for job in [job for job in self._jobs if job.is_over]:
            self._jobs.discard(job)
            self._places.release()
        for model in [model for model, lane in self._lanes.items() if lane.is_empty]:
            lane = self._lanes.pop(model)
            self._steps += lane.steps
            self._rows_stepped += lane.rows_stepped
            del self._used_s[model], self._marks[model]
            self._networks.pop(model).rest()


def _nothing() -> None:
    """Wakes the thread."""
