"""All that is being written with one model: one batch, which texts join and leave between any two steps.

waiting → reading (short ones together, a long one in parts) → writing (all together, a token a step)

rows   |0 … n-1: writing, dense|  … |reading|
"""

import time
from collections import deque
from dataclasses import dataclass, field

from flatshare.core.errors import Abandoned, FlatshareError
from flatshare.core.generation import Finish
from flatshare.instance.backends.generate.job import Job
from flatshare.instance.backends.generate.memory import CacheMemory, SessionKey
from flatshare.instance.backends.generate.network import MAX_ROWS, Logits, Network
from flatshare.instance.backends.generate.rows import Snapshot
from flatshare.instance.backends.generate.writing import Task, Writing, place, writing_of


@dataclass(slots=True, eq=False)
class _Text:
    """One task that has memory: being read, or being written."""

    job: Job
    task: Task
    writing: Writing
    reserved_bytes: int
    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """What each row appends in the next step."""


class Lane:
    """See the module. `model` names it in the sessions' keys. The stepper's thread only."""

    def __init__(self, model: int, network: Network, memory: CacheMemory) -> None:
        self._model = model
        self._network = network
        self._memory = memory
        self._waiting: deque[tuple[Job, Task]] = deque()
        self._reading: list[_Text] = []
        self._texts: list[_Text] = []
        self._has_just_read = False
        self.steps = 0
        self.rows_stepped = 0

    def add(self, job: Job) -> None:
        self._waiting += ((job, task) for task in job.tasks)

    @property
    def is_empty(self) -> bool:
        return not (self._waiting or self._reading or self._texts)

    @property
    def has_work(self) -> bool:
        """Something is being read or written. What only waits needs rows or memory that others have."""
        return bool(self._reading or self._texts)

    def turn(self) -> None:
        """One run of reading, or one step of all rows: they take turns, so that neither waits for the other's end."""
        if self._reading and not (self._texts and self._has_just_read):
            self._has_just_read = True
            self._read()
        elif self._texts:
            self._has_just_read = False
            self._step()

    def _drop_ended(self) -> None:
        """Whoever has left, or whose time is over, gives up its rows: first that, then it is told, so who hears it finds them free."""
        now_s = time.monotonic()
        jobs = {*(job for job, _ in self._waiting), *(text.job for text in self._held())}
        left = [job for job in jobs if job.is_cancelled and not job.is_over]
        for job in left:
            job.is_over = True
        for job in jobs:
            if not job.is_over and job.is_late(now_s):
                self._cut(job)
        self._forget_over()
        for job in left:
            job.listener.failed(Abandoned("the caller has left"))

    def fail(self, error: Exception) -> None:
        """The engine failed: so does everything that it was doing, each rider with an answer of its own."""
        jobs = {*(job for job, _ in self._waiting), *(text.job for text in self._held())}
        for text in self._held():
            self._memory.give_back(text.reserved_bytes)
        self._waiting.clear()
        self._texts, self._reading = [], []  # the lane is empty now, so that the network rests and its rows go as a whole
        for job in jobs:
            job.fail(error)

    # Beginning.

    def make_ready(self) -> None:
        """Drop what has ended, begin what waits."""
        self._drop_ended()
        self._begin()

    def _begin(self) -> None:
        """Begin to read the first that waits, and those behind it that can be read in the same run."""
        if self._reading:
            return
        while self._waiting:
            job, task = self._waiting[0]
            known = None if job.session is None else self._memory.recall(SessionKey(self._model, job.session))
            prompts = [*(text.task.prompt for text in self._reading), task.prompt]
            if self._reading and (known is not None or not self._network.can_read_together(prompts)):
                return
            if not self._has_taken(job, task, known) or known is not None:
                return

    def _has_taken(self, job: Job, task: Task, known: Snapshot | None) -> bool:
        """Take the text from those that wait, if there are rows and memory for it."""
        rows = sum(text.task.decoding.rows for text in self._held()) + task.decoding.rows
        need = task.decoding.rows * self._network.bytes_of(task.prompt, task.decoding.max_tokens)
        if rows > MAX_ROWS or not self._memory.reserve(need):
            return False
        self._waiting.popleft()
        before = len(self._reading)
        row = MAX_ROWS - 1 - before if self._texts else before  # out of the way of rows that are being written
        self._reading.append(_Text(job, task, writing_of(task, job.listener.piece), need, [row]))
        job.reuse(task, self._network.begin(row, task.prompt, known))
        return True

    def _read(self) -> None:
        logits = self._network.read([text.rows[0] for text in self._reading])
        if logits is None:
            return
        fresh, self._reading = self._reading, []
        self._texts += fresh  # all of them, so that none takes another's row
        for text, scores in zip(fresh, logits, strict=True):
            self._advance(text, scores[None])
        self._make_dense()

    # Going on.

    def _step(self) -> None:
        tokens = [0] * sum(len(text.rows) for text in self._texts)
        for text in self._texts:
            for row, token in zip(text.rows, text.tokens, strict=True):
                tokens[row] = token
        logits = self._network.step(tokens)
        self.steps += 1
        self.rows_stepped += len(tokens)
        for text in tuple(self._texts):
            self._advance(text, logits[text.rows])
        self._make_dense()

    def _advance(self, text: _Text, logits: Logits) -> None:
        """The text's next tokens. What goes wrong with one text is not the others' concern."""
        try:
            following = text.writing.advance(logits)
        except FlatshareError as error:
            text.job.fail(error)
            following = []
        if following:
            used = {row for other in self._texts for row in other.rows}
            placed = place(following, text.rows, (row for row in range(MAX_ROWS) if row not in used))
            for source, target in placed.copies:
                self._network.copy(source, target)
            for row in placed.freed:
                self._network.release(row)
            text.rows, text.tokens = list(placed.rows), [item.token for item in following]
        else:
            self._texts.remove(text)
            self._settle(text)

    def _make_dense(self) -> None:
        """Move the highest rows into the holes, so that the rows that are stepped are the first ones."""
        where = {row: (text, index) for text in self._texts for index, row in enumerate(text.rows)}
        for hole in (row for row in range(len(where)) if row not in where):
            highest = max(where)
            self._network.copy(highest, hole)
            self._network.release(highest)
            text, index = where.pop(highest)
            text.rows[index] = hole
            where[hole] = (text, index)

    # Ending.

    def _cut(self, job: Job) -> None:
        """The time is over: what has been written is the answer."""
        for waiting_job, task in tuple(self._waiting):
            if waiting_job is job:
                self._waiting.remove((waiting_job, task))
                unbegun = writing_of(task, job.listener.piece)
                unbegun.cut(Finish.DEADLINE)
                job.complete(unbegun.completed)
        for text in self._held():
            if text.job is job:
                text.writing.cut(Finish.DEADLINE)
                self._leave(text)

    def _forget_over(self) -> None:
        """Jobs that are over leave, wherever they are."""
        self._waiting = deque(pair for pair in self._waiting if not pair[0].is_over)
        for text in self._held():
            if text.job.is_over:
                self._leave(text)

    def _leave(self, text: _Text) -> None:
        (self._reading if text in self._reading else self._texts).remove(text)
        self._settle(text)
        self._make_dense()

    def _settle(self, text: _Text) -> None:
        """Give back what the text holds, and hand over what came of it."""
        job, prompt, snapshot = text.job, text.task.prompt, None
        if job.session is not None and not job.is_over and len(job.tasks) == 1 and text.task.decoding.rows == 1:
            snapshot = self._network.snapshot(text.rows[0], (*prompt.text, *prompt.first, *text.writing.tokens))
        for row in text.rows:
            self._network.release(row)
        self._memory.give_back(text.reserved_bytes)
        if job.session is not None and snapshot is not None:
            self._memory.remember(SessionKey(self._model, job.session), snapshot)
        job.complete(text.writing.completed)

    def _held(self) -> list[_Text]:
        return [*self._texts, *self._reading]
