"""One call to a generating model, on its way through the stepper and back to whoever listens."""

import time
from collections.abc import Sequence
from typing import Protocol

from flatshare.core.generation import Completion, Generated, Piece
from flatshare.instance.backends.generate.writing import Task


class Listener(Protocol):
    """Hears what comes of a call, on the stepper's thread: it must return at once, and never raise."""

    def piece(self, piece: Piece) -> None: ...

    def generated(self, generated: Generated) -> None: ...

    def failed(self, error: Exception) -> None:
        """Nothing more will come. Abandoned if the call was cancelled."""


class Job:
    """A call's tasks and what has come of them. Owned by the stepper, except for `cancel`."""

    def __init__(self, tasks: Sequence[Task], session: str | None, listener: Listener) -> None:
        self.tasks = tuple(tasks)
        self.session = session
        self.listener = listener
        self.is_cancelled = False
        self.is_over = False
        deadline_ms = self.tasks[0].decoding.deadline_ms
        self.deadline_s = None if deadline_ms is None else time.monotonic() + deadline_ms / 1e3
        self._completions: list[Completion] = []
        self._reused = [0] * len(self.tasks)
        self._open = len(self.tasks)

    def cancel(self) -> None:
        """From any thread: its rows are given up before the next step."""
        self.is_cancelled = True

    def is_late(self, now_s: float) -> bool:
        return self.deadline_s is not None and now_s >= self.deadline_s

    def reuse(self, task: Task, tokens: int) -> None:
        self._reused[task.index] = tokens

    def complete(self, completions: Sequence[Completion]) -> None:
        """A task is done; with the last one, the call is."""
        self._completions += completions
        self._open -= 1
        if self._open == 0 and not self.is_over:
            self.is_over = True
            ordered = sorted(self._completions, key=lambda completion: (completion.prompt, completion.choice))
            prompts = tuple(task.prompt.tokens for task in self.tasks)
            self.listener.generated(Generated(tuple(ordered), prompts, tuple(self._reused)))

    def fail(self, error: Exception) -> None:
        if not self.is_over:
            self.is_over = True
            self.listener.failed(error)
