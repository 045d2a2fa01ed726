"""Causal models: prompt and answer are one row of tokens, read in parts and then one by one."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.generate.network import Logits, Network, Prompt, Steps
from flatshare.instance.backends.generate.rows import Snapshot
from flatshare.instance.backends.generate.session import GraphSession, Weights

TOKENS_PER_PART = 128
"""A long prompt is read in parts of this many tokens, so that others have their turn in between."""


class LlamaNetwork(Network):
    def __init__(self, spec: GenerationSpec, prefill: GraphSession, steps: Steps, weights: Weights) -> None:
        super().__init__(spec, steps)
        self._prefill = prefill.bind(weights)
        self._names = tuple(f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value"))
        self._unread: dict[int, list[int]] = {}

    def begin(self, row: int, prompt: Prompt, known: Snapshot | None) -> int:
        reused = 0
        if known is not None:
            pairs = zip(known.tokens, prompt.text[:-1], strict=False)  # the last token is always read: its scores are wanted
            reused = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            for name, values in known.tensors.items():
                self.rows.write(row, name, values[:, :reused])
        self._lengths[row] = reused
        self._unread[row] = list(prompt.text[reused:])
        return reused

    def read(self, rows: Sequence[int]) -> Logits | None:
        [row] = rows
        unread = self._unread[row]
        part, self._unread[row] = unread[:TOKENS_PER_PART], unread[TOKENS_PER_PART:]
        logits = self._run_part(row, part)
        if self._unread[row]:
            return None
        del self._unread[row]
        return logits

    def bytes_of(self, prompt: Prompt, new_tokens: int) -> int:
        return 4 * 2 * self._spec.layers * self._spec.kv_heads * self._spec.head_size * (prompt.tokens + new_tokens)

    def copy(self, source: int, target: int) -> None:
        self.rows.copy(source, target, dict.fromkeys(self._names, int(self._lengths[source])))
        self._lengths[target] = self._lengths[source]
        if source in self._unread:
            self._unread[target] = list(self._unread[source])

    def snapshot(self, row: int, tokens: Sequence[int]) -> Snapshot:
        length = min(len(tokens), int(self._lengths[row]))
        return Snapshot(tuple(tokens[:length]), self.rows.copied(row, dict.fromkeys(self._names, length)))

    def release(self, row: int) -> None:
        super().release(row)
        self._unread.pop(row, None)

    def rest(self) -> None:
        super().rest()
        self._prefill.forget()

    def _run_part(self, row: int, part: Sequence[int]) -> Logits:
        logits = np.empty((1, self._spec.vocabulary), np.float32)
        end = int(self._lengths[row]) + len(part)
        for name in self._names:
            self._prefill.cache(name, self.rows.tensors[name][row : row + 1])
        self._prefill.input("input_ids", np.array([part], np.int64))
        self._prefill.input("last_positions", np.array([end - 1], np.int32))
        self._prefill.input("longest", np.array([end], np.int32))
        self._prefill.output("logits", logits)
        self._prefill.run()
        self._lengths[row] = end
        return logits

    def _row_shapes(self, capacity: int) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(self._names, (self._spec.kv_heads, capacity, self._spec.head_size))

    def _bind_rows(self, count: int) -> None:
        for name in self._names:
            self._step.cache(name, self.rows.tensors[name][:count])

    def _bind_step(self, tokens: NDArray[np.int64]) -> None:
        lengths = self._lengths[: len(tokens)]
        self._step.input("input_ids", tokens)
        self._step.input("last_positions", lengths.copy())
        self._step.input("longest", np.array([lengths.max() + 1], np.int32))
