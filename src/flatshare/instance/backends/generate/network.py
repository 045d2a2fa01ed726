"""What the stepper asks of a model's network, and what T5 and Llama shapes have in common: rows of a batch, and one step for all."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.generate.rows import CacheRows, Snapshot
from flatshare.instance.backends.generate.session import Binding, GraphSession, Weights

MAX_ROWS = 16
_CAPACITY_STEP = 64
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text is written from."""

    text: tuple[int, ...]
    """Encoder-decoder models: the text. Causal models: the context, up to which nothing is to be written."""
    first: tuple[int, ...]
    """Encoder-decoder models only: what the answer begins with, the start token included."""

    @property
    def tokens(self) -> int:
        return len(self.text) + len(self.first)


@dataclass(frozen=True, slots=True)
class Steps:
    """The graphs that append a token: to one row, and to several."""

    single: Binding
    several: Binding

    @classmethod
    def bound(cls, single: GraphSession, several: GraphSession, weights: Weights) -> Self:
        bound = single.bind(weights)
        return cls(bound, bound if several is single else several.bind(weights))


class Network(ABC):
    """One model with a batch of rows. Used by the stepper's thread only.

    Rows 0 to n-1 are stepped together; the stepper keeps them dense by moving the last into a hole.
    """

    def __init__(self, spec: GenerationSpec, steps: Steps) -> None:
        self._spec = spec
        self._steps = steps
        self._step = steps.single
        self._rows: CacheRows | None = None
        self._bound = 0
        self._lengths = np.zeros(MAX_ROWS, np.int32)

    @abstractmethod
    def begin(self, row: int, prompt: Prompt, known: Snapshot | None) -> int:
        """Take the row for a prompt. How many of its tokens `known` spares."""

    def can_read_together(self, prompts: Sequence[Prompt]) -> bool:
        """Whether these fit into one run, if nothing of them is known."""
        return len(prompts) == 1

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Logits | None:
        """Read the next part of the rows' prompts: the scores of what follows each, or None if parts are left."""

    @abstractmethod
    def bytes_of(self, prompt: Prompt, new_tokens: int) -> int:
        """Memory of a row with this prompt and so many tokens more."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """Make one row the other's equal."""

    @abstractmethod
    def snapshot(self, row: int, tokens: Sequence[int]) -> Snapshot:
        """Copy a row out; `tokens` are those that it has read."""

    @abstractmethod
    def _row_shapes(self, capacity: int) -> Mapping[str, tuple[int, ...]]: ...

    @abstractmethod
    def _bind_rows(self, count: int) -> None: ...

    @abstractmethod
    def _bind_step(self, tokens: NDArray[np.int64]) -> None: ...

    @property
    def rows(self) -> CacheRows:
        """Made when first needed."""
        if self._rows is None:
            capacity = -(-self._spec.positions // _CAPACITY_STEP) * _CAPACITY_STEP
            self._rows = CacheRows(self._row_shapes(capacity), MAX_ROWS)
        return self._rows

    def step(self, tokens: Sequence[int]) -> Logits:
        """Append one token to each of the first rows; the scores of what follows, [rows, vocabulary]."""
        count = len(tokens)
        if count != self._bound:
            self._step = self._steps.single if count == 1 else self._steps.several
            self._bind_rows(count)
            self._bound = count
        logits = np.empty((count, self._spec.vocabulary), np.float32)
        self._bind_step(np.array(tokens, np.int64)[:, None])
        self._step.output("logits", logits)
        self._step.run()
        self._lengths[:count] += 1
        return logits

    def release(self, row: int) -> None:
        """The row's text is done."""
        self.rows.release(row)
        self._lengths[row] = 0

    def rest(self) -> None:
        """No text is being written: nothing is kept but the weights."""
        self._steps.single.forget()
        self._steps.several.forget()
        self._bound = 0
        self._rows = None
