"""Encoder-decoder models: the text is read once, at once, and each step looks back at it and at what was written."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.generate.network import MAX_ROWS, Logits, Network, Prompt
from flatshare.instance.backends.generate.rows import Snapshot
from flatshare.instance.backends.generate.session import GraphSession, Weights

_MAX_FIRST_BY_STEP = 8  # so many tokens more than a session has are cheaper one by one than the text once more


class T5Network(Network):
    def __init__(self, spec: GenerationSpec, prefill: GraphSession, step: GraphSession, weights: Weights) -> None:
        super().__init__(spec, step.bind(weights))
        self._prefill = prefill.bind(weights)
        parts = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
        self._own_names = tuple(f"self.{part}" for part in parts)
        self._text_names = tuple(f"text.{part}" for part in parts)
        self._text_lengths = np.zeros(MAX_ROWS, np.int32)
        self._last: dict[str, NDArray[np.float32]] = {}
        self._unread: dict[int, Prompt] = {}
        self._kept_text: dict[int, tuple[int, ...]] = {}

    def begin(self, row: int, prompt: Prompt, known: Snapshot | None) -> int:
        """A session helps if its text is the same: then only what the answer begins with may have grown."""
        self._unread[row] = prompt
        self._lengths[row] = 0
        reused = _reused(prompt, known)
        if known is not None and reused:
            for name, values in known.tensors.items():
                self.rows.write(row, name, values[:, : reused - len(prompt.text)] if name.startswith("self.") else values)
            self._lengths[row] = reused - len(prompt.text)
            self._begin_text(row, len(prompt.text))
        return reused

    def read(self, row: int) -> Logits | None:
        prompt = self._unread[row]
        read = int(self._lengths[row])
        logits = self._step_alone(row, prompt.first[read]) if read else self._read_all(row, prompt)
        if self._lengths[row] < len(prompt.first):
            return None
        del self._unread[row]
        return logits

    def bytes_of(self, prompt: Prompt, new_tokens: int) -> int:
        return 4 * 2 * self._spec.layers * self._spec.kv_heads * self._spec.head_size * (prompt.tokens + new_tokens)

    def copy(self, source: int, target: int) -> None:
        self.rows.copy(source, target, self._all_lengths(source))
        self._lengths[target] = self._lengths[source]
        self._begin_text(target, int(self._text_lengths[source]))
        if source in self._unread:
            self._unread[target] = self._unread[source]

    def snapshot(self, row: int, tokens: Sequence[int]) -> Snapshot:
        read = int(self._text_lengths[row] + self._lengths[row])
        return Snapshot(tuple(tokens[:read]), self.rows.copied(row, self._all_lengths(row)))

    def release(self, row: int) -> None:
        super().release(row)
        self._unread.pop(row, None)

    def rest(self) -> None:
        super().rest()
        self._prefill.forget()
        self._last = {}

    def _read_all(self, row: int, prompt: Prompt) -> Logits:
        """The text, and what the answer begins with, in one run."""
        spec, text, first = self._spec, len(prompt.text), len(prompt.first)
        shapes = {name: (1, spec.kv_heads, first if name in self._own_names else text, spec.head_size) for name in self.rows.tensors}
        outputs = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        logits = np.empty((1, spec.vocabulary), np.float32)
        self._prefill.input("input_ids", np.array([prompt.text], np.int64))
        self._prefill.input("buckets", both_ways(text, spec.buckets, spec.furthest))
        self._prefill.input("decoder_ids", np.array([prompt.first], np.int64))
        self._prefill.input("decoder_buckets", backwards(np.arange(first), first, spec.buckets, spec.furthest))
        for name, array in outputs.items():
            self._prefill.output(f"present.{name}", array)
        self._prefill.output("logits", logits)
        self._prefill.run()
        for name, array in outputs.items():
            self.rows.write(row, name, array[0])
        self._lengths[row] = first
        self._begin_text(row, text)
        self._prefill.forget()  # the library would hold the keys and values a second time
        scores: Logits = logits[0]
        return scores

    def _step_alone(self, row: int, token: int) -> Logits:
        """One token of one row; the other rows of the batch do not move."""
        for name in (*self._own_names, *self._text_names):
            self._step.cache(name, self.rows.tensors[name][row : row + 1])
        for name in self._text_names:
            self._step.input(f"last.{name}", self._last[name][row : row + 1])
        self._bound = 0
        logits = np.empty((1, self._spec.vocabulary), np.float32)
        self._bind_lengths(np.array([[token]], np.int64), slice(row, row + 1))
        self._step.output("logits", logits)
        self._step.run()
        self._lengths[row] += 1
        scores: Logits = logits[0]
        return scores

    def _begin_text(self, row: int, length: int) -> None:
        """The step appends the text's last token anew each time, at the place where it is: GroupQueryAttention always appends one."""
        self._text_lengths[row] = length
        if not self._last:
            width = self._spec.kv_heads * self._spec.head_size
            self._last = {name: np.zeros((MAX_ROWS, 1, width), np.float32) for name in self._text_names}
        for name in self._text_names:
            self._last[name][row, 0] = self.rows.tensors[name][row, :, length - 1].reshape(-1)

    def _all_lengths(self, row: int) -> dict[str, int]:
        own, text = int(self._lengths[row]), int(self._text_lengths[row])
        return dict.fromkeys(self._own_names, own) | dict.fromkeys(self._text_names, text)

    def _row_shapes(self, capacity: int) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys((*self._own_names, *self._text_names), (self._spec.kv_heads, capacity, self._spec.head_size))

    def _bind_rows(self, count: int) -> None:
        for name in (*self._own_names, *self._text_names):
            self._step.cache(name, self.rows.tensors[name][:count])
        for name in self._text_names:
            self._step.input(f"last.{name}", self._last[name][:count])

    def _bind_step(self, tokens: NDArray[np.int64]) -> None:
        self._bind_lengths(tokens, slice(0, len(tokens)))

    def _bind_lengths(self, tokens: NDArray[np.int64], rows: slice) -> None:
        lengths, texts = self._lengths[rows], self._text_lengths[rows]
        longest = int(lengths.max()) + 1
        buckets = backwards(lengths, longest, self._spec.buckets, self._spec.furthest)
        self._step.input("input_ids", tokens)
        self._step.input("last_positions", lengths.copy())
        self._step.input("longest", np.array([longest], np.int32))
        self._step.input("text_last_positions", texts - np.int32(1))
        self._step.input("text_longest", np.array([texts.max()], np.int32))
        self._step.input("buckets", buckets[:, None, :])


def _reused(prompt: Prompt, known: Snapshot | None) -> int:
    """Tokens that a session spares: none, unless the text is the same and the answer's beginning goes on where it was."""
    if known is None or known.tokens[: len(prompt.text)] != prompt.text:
        return 0
    written = known.tokens[len(prompt.text) :]
    same = 0
    while same < min(len(written), len(prompt.first) - 1) and written[same] == prompt.first[same]:
        same += 1
    return len(prompt.text) + same if same and len(prompt.first) - same <= _MAX_FIRST_BY_STEP else 0


@lru_cache(maxsize=8)
def _distance_buckets(furthest_back: int, furthest_ahead: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """The bucket of each distance from -furthest_back to +furthest_ahead, as T5 has them: exact near by, logarithmic far away.

    Looking ahead has half of the buckets; without it (the decoder), looking back has all.
    """
    distances = np.arange(-furthest_back, furthest_ahead + 1)
    half = buckets // 2 if furthest_ahead else buckets
    away, exact = np.abs(distances), half // 2
    grown = np.log(np.maximum(away, 1).astype(np.float32) / exact) / math.log(furthest / exact) * (half - exact)
    far = np.minimum(exact + grown.astype(np.int64), half - 1)
    found: NDArray[np.int64] = np.where(away < exact, away, far) + np.where(distances > 0, half if furthest_ahead else 0, 0)
    return found


def both_ways(tokens: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """[tokens, tokens]: the bucket from each token to each, for an encoder."""
    if tokens == 1:
        return np.zeros((1, 1), np.int64)
    line = _distance_buckets(tokens - 1, tokens - 1, buckets, furthest)
    return np.ascontiguousarray(sliding_window_view(line, tokens)[::-1])


def backwards(positions: NDArray[np.integer], total: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """[positions, total]: the bucket from each position to all before it, for a decoder. What lies ahead is masked, and counts as near."""
    line = _distance_buckets(total, 0, buckets, furthest)
    distances = np.minimum(np.arange(total)[None, :] - np.asarray(positions, np.int64)[:, None], 0)
    found: NDArray[np.int64] = np.ascontiguousarray(line[distances + total])
    return found
